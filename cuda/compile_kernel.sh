#!/bin/sh
# One kernel file to DIR/NAME.fatbin (+ .ptxas, what ptxas said, and .d, what it was made of).  FROM is the folder of another
# build, or "": a fatbin there that was made with the same flags and is newer than everything it was made of is copied.
#     compile_kernel.sh FROM DIR SOURCE NVCC FLAGS...
set -eu
from=$1 dir=$2 source=$3
shift 3
name=$(basename "$source" .cu)

up_to_date() {
    [ -n "$from" ] && [ -f "$from/$name.fatbin" ] && [ -f "$from/$name.ptxas" ] && [ -f "$from/$name.d" ] || return 1
    cmp -s "$from/flags" "$dir/flags" || return 1
    # "target : file \ file ...": every one of them must exist and be older
    for file in $(sed -e 's/\\$//' -e 's/^[^:]*://' "$from/$name.d"); do
        [ -e "$file" ] && [ ! "$file" -nt "$from/$name.fatbin" ] || return 1
    done
}

if up_to_date; then
    cp "$from/$name.ptxas" "$dir/$name.ptxas"
    sed -e "1s|^[^:]*:|$dir/$name.fatbin :|" "$from/$name.d" >"$dir/$name.d"
    cp "$from/$name.fatbin" "$dir/$name.fatbin"
else
    "$@" -MD -MF "$dir/$name.d" -MT "$dir/$name.fatbin" -o "$dir/$name.fatbin" "$source" 2>"$dir/$name.ptxas" || {
        cat "$dir/$name.ptxas" >&2
        exit 1
    }
fi
