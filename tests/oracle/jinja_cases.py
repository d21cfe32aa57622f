"""The templates and conversations of make_chat_vectors.py.  A case is a template, or (template, variables)."""

WHITE_SPACE = [
    "", "\n", "a\n", "a\n\n", "a\r\nb\rc\r\n", "{{ 1 }}\n{{ 2 }}\n",
    "a\n  {% if true %}  \n  b\n  {% endif %}\nc", "a {% if true %} b {% endif %} c",
    "a\n  {%- if true %}\n b {%- endif -%}  \n c", "a\n  {%+ if true %}\n b\n  {%+ endif %}\nc",
    "a\n{% if true +%}\nb{% endif +%}\nc", "a {{- 1 -}} b {{ 2 -}}\n\n c {{- 3 }} d",
    "x\n  {# note #}\ny", "x {#- note -#} y", "x {# a\nb #}\ny", "x\n\t{#- note #}\n y", "x{# a -#}\n  \n y{# b +#}\nz",
    "  {% set a = 1 %}\n{{ a }}", "\t{# c #}  {% set a = 1 %}\n  {{ a }}  \n", "{% if true %}\n\n\na\n{% endif %}\n",
    "{% raw %}{{ x }} {% if %}{% endraw %}!", "a {%- raw -%} \n {{ x }} \n {%- endraw -%} \n b",
    "a\n  {% raw %}\n  b\n  {% endraw %}\nc", "{% raw %}a{%raw%}{% endraw %}", "{%raw%}x{%endraw%}\ny",
    "{{ '  x  ' }}\n  {{ 'y' }}", "\u00a0 {%- if true %}x{% endif -%} \u2003\n y", "{{-1}}", "{{ -1 }}", "{{+1}}",
    "{% for i in range(3) %}\n  {{ i }}\n{% endfor %}\nend", "{% for i in range(3) -%}\n  {{ i }}\n{%- endfor %}\nend",
    "a\n   {% set x = 1 %}   {% set y = 2 %}\nb", "{% set x %}\n a\n{% endset %}\n[{{ x }}]", "{", "{ {", "}} %} #}",
    "a{% if true %}\n{% endif %}\n\nb", "{{ {'a': {'b': 1}}['a'] }}", "{{ {'a': {'b': 1}} }}", "{{ [1, [2, 3]] }}",
    "line\n    {{ 1 }}\n    {%- set z = 1 %}\n    {{ z }}", "é\n  {% if true %}ü{% endif %}\n",
]

LITERALS = [
    "{{ 'a' \"b\" 'c' }}", r"{{ 'a\n\t\\\'\"\x41\u00e9\U0001F600\101\0z' }}", r"{{ '\d\q' }}", r'{{ "it\'s" }}', "{{ 'a\nb' }}",
    r"{{ 'a\
b' }}", "{{ 1_000 }} {{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 1.5 }} {{ 1e3 }} {{ 2.5e-7 }} {{ 1_0.5_0 }}",
    "{{ true }} {{ True }} {{ false }} {{ none }} {{ None }}", "{{ [] }} {{ () }} {{ {} }} {{ (1,) }} {{ (1, 2) }} {{ [1,] }}",
    "{{ {'a': 1, 2: 'b', none: true, 1.5: [] } }}", "{{ 1, 2 }}", "{{ {'a': 1, 'a': 2} }}", "{{ {1: 'a', true: 'b', 1.0: 'c'} }}",
    "{{ 9223372036854775807 }}", "{{ -9223372036854775807 - 1 }}", "{{ 1.0 }} {{ 100.0 }} {{ 1e16 }} {{ 1e15 }} {{ 123456789.125 }}",
    "{{ 0.0001 }} {{ 0.00001 }} {{ 1e-7 }} {{ 1.7976931348623157e308 }} {{ 5e-324 }} {{ -0.0 }} {{ 0.1 + 0.2 }} {{ 1e22 }} {{ 2.0e300 * 1e300 }}",
    "{{ ['a', \"it's\", 'q\"q', 'b\\'\"', '\\n\\\\', 'é', '\\x00\\x7f\\u00ad\\u200b\\u2028\\u3000', '\\U000e0001'] }}",
]

OPERATORS = [
    "{{ 1 + 2 * 3 }} {{ (1 + 2) * 3 }} {{ 7 / 2 }} {{ 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }}",
    "{{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ 2 ** -1 }} {{ 2.0 ** 0.5 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 1 - 2 - 3 }} {{ 8 / 4 / 2 }}",
    "{{ 1 ~ 2 ~ 'a' ~ none ~ true ~ 1.0 ~ [1] ~ x }}", "{{ 'a' + 'b' }} {{ 'ab' * 3 }} {{ 3 * 'ab' }} {{ 'x' * -1 }} {{ [1] + [2] }} {{ [0] * 2 }} {{ (1,) + (2,) }}",
    "{{ 1 < 2 }} {{ 1 < 2 < 3 }} {{ 1 < 2 > 3 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ 'a' == 1 }} {{ none == none }}",
    "{{ 1 in [1, 2] }} {{ 3 not in [1, 2] }} {{ 'a' in 'cat' }} {{ 'a' in {'a': 1} }} {{ '' in 'x' }} {{ 1 in (1,) }} {{ 'k' in d }}",
    "{{ not true }} {{ not 1 == 2 }} {{ true and false or true }} {{ 1 and 2 }} {{ 0 or 'x' }} {{ '' or none }} {{ not not 1 }}",
    "{{ 1 if true else 2 }} {{ 1 if false else 2 if false else 3 }} {{ 1 if false }}|{{ 'a' if x is defined else 'b' }}",
    "{{ -1 | abs }} {{ (-1) | abs }} {{ - 1 + 2 }} {{ +true }} {{ -true }} {{ - -1 }}", "{{ 1 + 2 | string | length }}", "{{ 'a' ~ 'b' | upper }}",
    "{{ 5 % 3 }} {{ '%s is %d and %r' % ('a', 3, 'b') }} {{ '%s' % 'x' }} {{ '%5.2f|%05d|%-4d|%x' % (1.5, 42, 7, 255) }} {{ '100%%' % () }}",
    "{{ 9007199254740993 == 9007199254740992.0 }} {{ 9007199254740993 > 9007199254740992.0 }} {{ 1e300 > 1 }} {{ -1e300 < 1 }}",
    "{{ [1, 2] == (1, 2) }} {{ {'a': 1} == {'a': 1.0} }} {{ {'a': 1} != {'b': 1} }} {{ x == y }} {{ x == none }} {{ x != 1 }}",
    "{{ 1 + 'a' }}", "{{ 'a' + 1 }}", "{{ none + 'a' }}", "{{ 'a' < 1 }}", "{{ [] + () }}", "{{ 1 / 0 }}", "{{ 1 % 0 }}", "{{ 1.0 // 0 }}", "{{ 1 in 2 }}", "{{ 1 in 'a' }}",
    "{{ none < 1 }}", "{{ -'a' }}", "{{ 'a' - 'b' }}", "{{ 'a' * 1.5 }}", "{{ {} + {} }}", "{{ 10 // 3 * 3 + 10 % 3 }}", "{{ 0 ** -1 }}", "{{ '%d' % 'x' }}", "{{ '%s %s' % 'x' }}",
    "{{ x + 1 }}", "{{ 'a' + x }}", "{{ 'a' ~ x }}!", "{{ -x }}", "{{ x < 1 }}", "{{ 1 in x }}", "{{ x in [1] }}", "{{ x in 'a' }}", "{{ x() }}", "{{ x.y }}", "{{ x['y'] }}", "{{ x[0] }}", "{{ x[1:] }}",
    "{{ not x }} {{ x and 1 }} {{ x or 2 }} {{ x if x else 3 }}", "{{ true + true }} {{ 1 - true }} {{ 2 * 1.5 }} {{ 3 // 1.0 }}", "{{ 1 is 1 }}",
    "{{ (1 if false) + 1 }}", "{{ (1 if false).x }}",
]

ACCESS = [
    ("{{ d.a }} {{ d['a'] }} {{ d.b.c }} {{ d['b']['c'] }} {{ d.l[0] }} {{ d.l.1 }} {{ d.l[-1] }} {{ d.zzz }}|{{ d['zzz'] }}|{{ d.l[9] }}|{{ d.l['x'] }}",
     {"d": {"a": 1, "b": {"c": "é"}, "l": [1, 2, 3]}}),
    ("{{ d.items is defined }} {{ d['items'] }} {{ d.get('items') }} {{ d.get('q') }} {{ d.get('q', 5) }} {{ d.keys() | list }} {{ d.values() | list }}",
     {"d": {"items": "own", "x": 2}}),
    ("{{ d.keys() }} {{ d.values() }} {{ d.items() }} {{ d.items() | length }}", {"d": {"a": 1, "b": "x"}}),
    ("{{ s[0] }}{{ s[-1] }}|{{ s[1:3] }}|{{ s[::-1] }}|{{ s[::2] }}|{{ s[-2:] }}|{{ s[:-1] }}|{{ s[10:] }}|{{ s[3:1] }}|{{ s[4:0:-2] }}|{{ s[-100:100] }}|{{ s[9] }}|{{ s[::100] }}|{{ s[::-100] }}",
     {"s": "aé日😀z"}),
    ("{{ l[1:3] }}|{{ l[::-1] }}|{{ l[::2] }}|{{ l[-2:] }}|{{ l[:-1] }}|{{ l[10:] }}|{{ l[3:1] }}|{{ l[4:0:-2] }}|{{ l[:] }}|{{ l[None:2] }}|{{ l[5::-1] }}|{{ l[-1:-9:-3] }}",
     {"l": [0, 1, 2, 3, 4]}),
    ("{{ l[::0] }}", {"l": [1]}), ("{{ l['a':] }}", {"l": [1]}), "{{ none.x }}|{{ none['x'] }}|{{ 1 .x }}", "{{ none.x.y }}", "{{ (1, 2)[0] }} {{ (1, 2, 3)[1:] }} {{ 'abc'[1] }}",
    "{{ range(5) }} {{ range(1, 5, 2) }} {{ range(5)[1:3] }} {{ range(3) | list }} {{ range(5, 0, -2) | list }} {{ range(0) | list }} {{ range(3)[-1] }}",
    "{{ range(1000000) }}", "{{ range(1, 2, 0) }}", "{{ range() }}", "{{ range('a') }}", "{{ 'abc'.upper }}|" if False else "{{ 'abc'['upper']() }}",
    "{{ {'a': 1}[[]] }}", "{{ {[]: 1} }}", "{{ {(1, 2): 3}[(1, 2)] }}", "{{ [1, 2].x }}|", "{{ 'a'.nope() }}", "{{ {}.nope() }}", "{{ [].pop() }}", "{{ {'a': 1}.update({}) }}",
    ("{{ a.b.c.d }}", {"a": {"b": {}}}), ("{{ a.b.c }}|", {"a": {"b": {}}}), ("{{ m[0]['role'] }}", {"m": []}), ("{{ true.x }}|{{ 1.5.x }}|", {}),
]

STATEMENTS = [
    "{% if 0 %}a{% elif '' %}b{% elif [] %}c{% else %}d{% endif %}", "{% if 0 %}a{% elif 1 %}b{% else %}d{% endif %}", "{% if x %}a{% endif %}b", "{% if x is not defined: %}a{% endif %}",
    "{% for i in [1, 2, 3] %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.depth }} {% endfor %}",
    "{% for i in [] %}a{% else %}none{% endfor %}", "{% for i in x %}a{% else %}none{% endfor %}", "{% for c in 'aé' %}[{{ c }}]{% endfor %}", "{% for k in {'a': 1, 'b': 2} %}{{ k }}{% endfor %}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}", "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for a, b in [(1, 2, 3)] %}{% endfor %}", "{% for a, b in [1] %}{% endfor %}",
    "{% for i in range(10) if i % 2 %}{{ loop.index }}:{{ i }}/{{ loop.length }} {% endfor %}", "{% for i in range(3) if i > 5 %}x{% else %}empty{% endfor %}",
    "{% for i in [1, 2, 3] %}{{ loop.previtem if loop.previtem is defined else '-' }}{{ loop.nextitem | default('+') }}{% endfor %}", "{% for i in 1 %}{% endfor %}", "{% for i in none %}{% endfor %}",
    "{% set x = 1 %}{% for i in range(3) %}{{ x }}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}", "{% for i in range(3) %}{% set y = i %}{% endfor %}{{ y is defined }}{{ i is defined }}{{ loop is defined }}",
    "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}{{ ns.c }}|{{ ns.c is defined }}",
    "{% set d = {} %}{% set d.x = 1 %}", "{% set x.y = 1 %}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a = b = 1 %}", "{% set a %}x {{ 1 + 1 }} y{% endset %}[{{ a }}]", "{% set a | trim | upper %}  x {% endset %}[{{ a }}]",
    "{% if true %}{% set q = 1 %}{% endif %}{{ q }}", "{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}!",
    "{% for i in [1, 2] %}{% for j in [1, 2] %}{% if j == 2 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{{ loop.index }}{% endfor %}", "{% break %}",
    "{% macro m(a, b=2, c=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, c=5) }} {{ m(b=1, a=0) }} {{ m() }}", "{% macro m() %}x{% endmacro %}{{ m() + 'y' }} {{ m() | upper }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}", "{% macro m(a) %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, z=3) }}",
    "{% macro m(n) %}{{ n }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(5) }}", "{% set g = 1 %}{% macro m() %}{{ g }}{% set g = 5 %}{{ g }}{% endmacro %}{{ m() }}{{ g }}", "{% macro m() %}{{ later }}{% endmacro %}{% set later = 7 %}{{ m() }}",
    "{% macro a() %}[{{ b() }}]{% endmacro %}{% macro b() %}b{% endmacro %}{{ a() }}", "{% for i in [1, 2] %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}", "{{ m() }}{% macro m() %}x{% endmacro %}",
    "{% for i in [1] %}{{ m() }}{% endfor %}{% macro m() %}x{% endmacro %}", "{% generation %}a{% set z = 1 %}{{ z }}{% endgeneration %}{{ z is defined }}", "{% for m in [1, 2] %}{% generation %}{{ m }}{{ loop.index }}{% endgeneration %}{% endfor %}",
    "{{ raise_exception('no: %s' ~ 1) }}", "{% if false %}{{ raise_exception('x') }}{% endif %}ok", "{% set tools = none if tools is not defined else tools %}{{ tools }}", "{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools is none }}",
    ("{% set messages = messages[1:] %}{{ messages | length }}{% for m in messages %}{{ m }}{% endfor %}", {"messages": [1, 2, 3]}), ("{% for m in messages %}{% set messages = 5 %}{% endfor %}{{ messages }}", {"messages": [1, 2]}),
    "{% for i in range(2) %}{% set outer = loop %}{% for j in range(2) %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}", "{{ loop }}|", "{% for i in [1, 2, 3, 4] %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in [1, 2] recursive %}{{ x }}{% endfor %}" if False else "{% for x in [3] %}{{ x }}{% endfor %}{{ x }}|", "{% if true %}", "{% for %}", "{% endif %}", "{% if %}{% endif %}", "{{ }}", "{{ 1", "{{ 1 }", "{% set %}", "{{ 'a }}", "{# x", "{% raw %}x", "{{ a b }}", "{{ (1 }}", "{{ 1) }}", "{{ [1} }}",
    "{{ a. }}", "{{ a | }}", "{{ a is }}", "{{ 1 | nope }}", "{{ 1 is nope }}", "{% nope %}", "{% if false %}{{ 1 | nope }}{% endif %}ok", "{% if true %}{{ 1 | nope }}{% endif %}", "{{ 1 | nope if false else 2 }}", "{{ (1 | nope) if true else 2 }}", "{% macro m( %}", "{{ 1 !! 2 }}", "{{ $ }}", "{% set true = 1 %}", "{% for true in [] %}{% endfor %}",
    "{{ dict(a=1, b=2) }} {{ dict({'x': 1}, y=2) }} {{ dict([('k', 'v')]) }} {{ dict() }}", "{{ namespace().x }}|", "{% set ns = namespace() %}{% set ns.list = [] %}{% set ns.list = ns.list + [1] %}{{ ns.list }}", "{{ range }}" if False else "{{ range is callable }} {{ 1 is callable }}",
    "{% set x = 1 %}{% macro m(x) %}{{ x }}{% endmacro %}{{ m(2) }}{{ x }}{{ m() }}|", "{% for i in range(3) %}{{ ',' if not loop.first }}{{ i }}{% endfor %}", "{% set a = [1,2,3] %}{% set _ = a %}{{ _ }}",
]

TESTS = [
    "{% for v in [1, 1.5, true, 'a', [], {}, none, (), range(2), x] %}{{ v is string }},{{ v is number }},{{ v is integer }},{{ v is float }},{{ v is boolean }},{{ v is mapping }},{{ v is iterable }},{{ v is sequence }},{{ v is none }},{{ v is defined }},{{ v is undefined }},{{ v is true }},{{ v is false }}\n{% endfor %}",
    "{{ 4 is even }} {{ 3 is odd }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 1 is eq 1 }} {{ 1 is ne 1 }} {{ 2 is gt 1 }} {{ 2 is ge 2 }} {{ 1 is lt 2 }} {{ 1 is le 0 }} {{ 1 is equalto 1 }} {{ 1 is in [1] }} {{ 1 is not in [1] }} {{ 'a' is in 'abc' }}",
    "{{ 'abc' is lower }} {{ 'ABC' is upper }} {{ 'Abc' is lower }} {{ '1' is upper }} {{ none is sameas none }} {{ 1 is sameas true }} {{ 'trim' is filter }} {{ 'nope' is filter }} {{ 'odd' is test }} {{ 'x' is escaped }} {{ 'x' | e is escaped }}",
    "{{ x is defined and x }} {{ x is not defined or x.y }} {{ 1 is not none }} {{ not 1 is none }} {{ 1 is string or 2 }} {{ 1 if 1 is number else 2 }}", "{{ 1 is divisibleby 0 }}", "{{ 'a' is even }}", "{{ 1 is string is string }}", "{{ 1 is eq }}", "{{ 1 is defined(2) }}",
    "{{ [1, 2] | map('string') is iterable }} {{ [1] | map('string') is sequence }} {{ {}.items() is sequence }} {{ {}.keys() is iterable }}",
]

FILTERS = [
    "{{ '  a b \n' | trim }}| {{ 'xxaxx' | trim('x') }} {{ none | trim }} {{ 1 | trim }} {{ x | trim }}|", "{{ [1, 2] | length }} {{ 'é日' | length }} {{ {'a': 1} | count }} {{ x | length }}", "{{ 1 | length }}", "{{ none | length }}",
    "{{ 'aé ß ŉ ﬁ' | upper }} {{ 'AÉ İ' | lower }} {{ 'hELLO wORLD' | capitalize }} {{ 'hello wORLD-foo (bar) it\\'s' | title }} {{ 'ßx ǆ' | capitalize }}", "{{ 1 | upper }} {{ none | lower }} {{ true | upper }}",
    "{{ [1, 'a', none] | join }} {{ [1, 2] | join(', ') }} {{ ['a'] | join('x') }} {{ 'abc' | join('-') }} {{ x | join }} {{ [{'a': 1}, {'a': 2}] | join(',', attribute='a') }} {{ [1, 2] | join(0) }}",
    ("{{ v | tojson }}\n{{ v | tojson(indent=2) }}\n{{ v | tojson(ensure_ascii=True) }}\n{{ v | tojson(separators=(',', ':')) }}\n{{ v | tojson(sort_keys=true) }}\n{{ v | tojson(indent='\t') }}\n{{ v | tojson(indent=0) }}\n{{ v | tojson(true) }}",
     {"v": {"b": [1, 2.5, None, True, "é\"\\\n\t\u0001\u007f\u2028😀</script>&'"], "a": {}, "c": [], "d": {"x": {"y": [[]]}}, "e": 1e20, "f": 0.1}}),
    "{{ {1: 'a', true: 'b', none: 'c', 1.5: 'd'} | tojson }} {{ (1, 2) | tojson }} {{ 'x' | tojson }} {{ none | tojson }} {{ 1e400 | tojson }}", "{{ x | tojson }}", "{{ range(3) | tojson }}", "{{ {(1, 2): 3} | tojson }}", "{{ [x] | tojson }}", "{{ {'b': 1, 2: 3} | tojson(sort_keys=true) }}",
    "{{ x | default('d') }} {{ '' | default('d') }} {{ '' | default('d', true) }} {{ none | default('d') }} {{ none | d('d', boolean=true) }} {{ x | d }}| {{ x.y | default(1) }}", ("{{ a.b | default(1) }} {{ a.b.c | default(2) }}", {"a": {}}),
    "{{ [1, 2] | first }} {{ [1, 2] | last }} {{ 'abc' | first }} {{ 'abc' | last }} {{ [] | first }}| {{ [] | last }}| {{ {'a': 1} | first }} {{ {'a': 1, 'b': 2} | last }}", "{{ 1 | first }}", "{{ 'abc' | list }} {{ {'a': 1} | list }} {{ (1, 2) | list }} {{ x | list }}",
    "{{ {'a': 1, 'b': 2} | items | list }} {{ x | items | list }}", "{{ [1] | items | list }}", "{{ {'b': 1, 'A': 2, 'c': 0} | dictsort }} {{ {'b': 1, 'A': 2} | dictsort(true) }} {{ {'b': 1, 'a': 2} | dictsort(by='value') }} {{ {'b': 1, 'a': 2} | dictsort(reverse=true) }}", "{{ [1] | dictsort }}",
    "{{ [{'a': 1}, {'a': 2}, {}] | map(attribute='a') | list }} {{ [{'a': 1}, {}] | map(attribute='a', default=0) | list }} {{ ['a', 'b'] | map('upper') | join }} {{ ['a'] | map('replace', 'a', 'z') | list }} {{ [{'a': {'b': [5, 6]}}] | map(attribute='a.b.1') | list }} {{ [[1, 2]] | map('first') | list }}",
    "{{ [1, 2] | map('nope') | list }}", "{{ [1] | map | list }}", "{{ [0, 1, '', 'a', none] | select | list }} {{ [0, 1] | reject | list }} {{ [1, 2, 3] | select('odd') | list }} {{ [1, 2, 3] | reject('gt', 1) | list }} {{ [1, 2, 3] | select('>', 1) | list }} {{ [1, 'a'] | select('string') | list }}",
    ("{{ m | selectattr('role', 'equalto', 'user') | list | length }} {{ m | selectattr('role', '==', 'user') | map(attribute='content') | join(',') }} {{ m | rejectattr('role', 'eq', 'user') | map(attribute='role') | list }} {{ m | selectattr('x') | list | length }} {{ m | selectattr('x', 'defined') | list | length }} {{ m | rejectattr('x') | list | length }} {{ (m | selectattr('role', 'in', ['tool', 'system']) | first).content }}",
     {"m": [{"role": "system", "content": "s"}, {"role": "user", "content": "a", "x": 1}, {"role": "user", "content": "b", "x": 0}]}),
    "{{ [1] | select('nope') | list }}", "{{ [1] | selectattr | list }}", "{{ 'aXbX' | replace('X', '--') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ 'ab' | replace('', '.') }} {{ 12 | replace(1, 3) }} {{ 'ab' | replace('', '.', 2) }}", "{{ 1 | string + '2' }} {{ none | string }} {{ [1] | string }} {{ x | string }}|",
    "{{ '12' | int }} {{ 'x' | int }} {{ 'x' | int(5) }} {{ '1.9' | int }} {{ 1.9 | int }} {{ -1.9 | int }} {{ '0x1f' | int(base=16) }} {{ ' 7 ' | int }} {{ true | int }} {{ none | int }} {{ '1_000' | int }} {{ [] | int(3) }} {{ '-5' | int }} {{ '1e3' | int }}",
    "{{ '1.5' | float }} {{ 'x' | float }} {{ 2 | float }} {{ 'x' | float(1) }} {{ ' 1e3 ' | float }} {{ none | float }} {{ 'inf' | float }}", "{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 5 | round }} {{ 1.21 | round(1, 'ceil') }} {{ 1.29 | round(1, 'floor') }} {{ 42.55 | round(precision=1) }} {{ -0.5 | round }}", "{{ 'a' | round }}", "{{ x | int }}",
    "{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2) }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(2, blank=true) }}|{{ 'a\n' | indent }}|{{ '' | indent(first=true) }}|{{ 'a\nb' | indent('> ') }}|{{ 'a\nb' | indent(width=1, first=True) }}",
    "{{ [3, 1, 2] | sort }} {{ ['b', 'A', 'c'] | sort }} {{ ['b', 'A'] | sort(case_sensitive=true) }} {{ [1, 2] | sort(reverse=true) }} {{ [{'a': 2, 'n': 1}, {'a': 1, 'n': 2}, {'a': 2, 'n': 3}] | sort(attribute='a') }} {{ [{'a': 1, 'n': 1}, {'a': 1, 'n': 2}] | sort(attribute='a', reverse=true) }} {{ 'hello' | sort | join }}",
    "{{ [1, 'a'] | sort }}", "{{ [1, 2, 1, 'a', 'A', 1.0] | unique | list }} {{ ['a', 'A'] | unique(true) | list }} {{ [{'k': 1}, {'k': 1}] | unique(attribute='k') | list }}", "{{ [1, 2, 3] | reverse | list }} {{ 'aé' | reverse }} {{ {'a': 1, 'b': 2} | reverse | list }}",
    "{{ '<a href=\"x\">\\'&' | e }} {{ '<' | escape }} {{ '<' | safe }} {{ ('<' | safe) + '>' }} {{ ('<' | e) + '>' }} {{ '>' + ('<' | e) }} {{ ('<' | e) ~ '>' }} {{ '<' | e | e }} {{ 1 | e }}", "{{ [1, 2, 3] | sum }} {{ [{'a': 1}, {'a': 2}] | sum(attribute='a') }} {{ [1.5, 2] | sum(start=10) }} {{ [3, 1] | min }} {{ [3, 1] | max }} {{ [] | max }}| {{ ['b', 'A'] | min }} {{ -3 | abs }} {{ (-3.5) | abs }}",
    "{{ '%s-%s' | format('a', 1) }} {{ '%.2f' | format(1.005) }}", "{{ [1, 2, 3] | map('string') | join('|') | upper | length }}", "{% set g = [1, 2, 3] | map('string') %}{{ g | first }}{{ g | join }}{{ g | list }}", "{% if [] | map('string') %}true{% endif %}", "{{ [1] | map('string') | length }}", "{{ ([1] | map('string'))[0] }}|",
    "{{ 'a' | trim(1) }}", "{{ 'a' | upper(1) }}", "{{ 'a' | replace('a') }}", "{{ 'a' | trim(nope=1) }}", "{{ 'a' | trim('a', chars='b') }}", "{{ [[1, 2], [3]] | sum(start=[]) }}", "{{ ['a'] | sum(start='') }}", "{{ [3, 1] | sort | first }}", "{{ 'b,a' .split(',') | sort | join(',') }}",
]

METHODS = [
    "{{ '  a '.strip() }}|{{ '  a '.lstrip() }}|{{ '  a '.rstrip() }}|{{ 'xyaxy'.strip('xy') }}|{{ '\\n\\na\\n'.strip('\\n') }}|{{ 'éaé'.strip('é') }}|{{ '\u3000a\u2003\x1c'.strip() }}|{{ 'a'.strip(none) }}",
    "{{ 'a b  c'.split() }} {{ 'a,b,,c'.split(',') }} {{ 'a b c'.split(' ', 1) }} {{ ' a  b c '.split(none, 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ' a b  c '.rsplit(none, 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'abc'.split('bc') }} {{ 'a<|>b'.split('<|>')[-1] }} {{ 'a b'.split(maxsplit=0) }} {{ 'a,b'.split(sep=',') }} {{ 'aaa'.rsplit('aa') }} {{ ' x '.rsplit(maxsplit=0) }}",
    "{{ 'a'.split('') }}", "{{ 'a'.split(1) }}", "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('bc') }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'a'.startswith('') }} {{ 'a'.startswith('abc') }} {{ 'abc'.endswith(('x',)) }}", "{{ 'a'.startswith(1) }}", "{{ 'a'.startswith(x) }}",
    "{{ 'aaa'.replace('a', 'b') }} {{ 'aaa'.replace('a', 'b', 1) }} {{ 'ab'.replace('', '-') }} {{ 'aaa'.replace('aa', 'b') }} {{ ''.replace('', 'x') }}", "{{ 'aß'.upper() }} {{ 'ÀB'.lower() }} {{ \"it's a dog3cat\".title() }} {{ 'hELLO'.capitalize() }}",
    "{{ 'abcabc'.find('c') }} {{ 'é日x'.find('x') }} {{ 'abc'.find('z') }} {{ 'abcabc'.rfind('c') }} {{ 'abcabc'.count('bc') }} {{ 'aaa'.count('aa') }} {{ 'é'.count('') }} {{ 'abc'.index('b') }}", "{{ 'abc'.index('z') }}", "{{ ', '.join(['a', 'b']) }} {{ ''.join([]) }} {{ '-'.join('abc') }} {{ ' '.join({'a': 1, 'b': 2}) }}", "{{ ','.join([1]) }}",
    "{{ '{} {}'.format(1, 'a') }} {{ '{1}{0}'.format('a', 'b') }} {{ '{x}'.format(x=3) }} {{ '{{}}'.format() }} {{ '{{{}}}'.format(1) }}", "{{ '{}'.format() }}", "{{ '{'.format() }}", "{{ '}'.format() }}", "{{ 'abc'.isalpha() }} {{ '12'.isdigit() }} {{ ' \\n'.isspace() }} {{ ''.isspace() }} {{ 'AB1'.isupper() }} {{ 'ab'.islower() }} {{ 'a1'.isalnum() }} {{ 'é'.isalpha() }}",
    "{{ 'a\\nb\\r\\nc\\n'.splitlines() }} {{ ''.splitlines() }} {{ 'a\\x0bb\\u2028c'.splitlines() }}", "{{ 'abc'.removeprefix('ab') }} {{ 'abc'.removesuffix('bc') }} {{ 'abc'.removeprefix('x') }}", "{{ [1, 2, 1].count(1) }} {{ [1, 2].index(2) }} {{ (1, 2).index(1) }}", "{{ [1].index(5) }}", "{{ {'a': 1}.get('a') }} {{ {'a': 1}.copy() }} {{ {'a': {}}.get('a').get('b', 'z') }}",
    "{{ 'x'.strip(1) }}", "{{ {}.get() }}", "{{ {}.get([]) }}", "{{ ''.join(none) }}", "{{ 'content'.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}", "{{ ('a' ~ 'b').upper().lower().title() }}", "{{ 'a'.upper() if 'a'.islower() else 'b' }}",
]

CASES = WHITE_SPACE + LITERALS + OPERATORS + ACCESS + STATEMENTS + TESTS + FILTERS + METHODS

SYSTEM = {"role": "system", "content": "You are terse.\n"}
USER = {"role": "user", "content": "  Hello, wörld 😀 "}
ANSWER = {"role": "assistant", "content": "Hi!\n\n"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm, 'so'\n</think>\n\nYes."}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": {"q": "é \"x\"", "n": 2, "deep": {"a": [1.5, None, True]}}}}]}
CALLS = {"role": "assistant", "content": "Wait.", "tool_calls": [
    {"type": "function", "function": {"name": "f", "arguments": {}}}, {"type": "function", "function": {"name": "g", "arguments": {"b": "x", "a": "y"}}}]}
TOOL = {"role": "tool", "content": "{\"found\": 1}"}
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Finds <things> & 'more'", "parameters": {
    "type": "object", "properties": {"q": {"type": "string"}, "n": {"type": "integer", "default": 1}}, "required": ["q"]}}}]

CONVERSATIONS = {
    "user": {"messages": [USER]},
    "system_user": {"messages": [SYSTEM, USER]},
    "two_turns": {"messages": [USER, ANSWER, {"role": "user", "content": "And?"}]},
    "system_two_turns": {"messages": [SYSTEM, USER, ANSWER, USER, ANSWER]},
    "thoughts": {"messages": [USER, THOUGHT, USER, THOUGHT]},
    "reasoning_content": {"messages": [USER, {"role": "assistant", "content": "Yes.", "reasoning_content": "\nbecause\n"}, USER]},
    "thinking_off": {"messages": [USER], "enable_thinking": False},
    "thinking_on": {"messages": [USER, THOUGHT], "enable_thinking": True},
    "tools_offered": {"messages": [USER], "tools": TOOLS},
    "tools_offered_system": {"messages": [SYSTEM, USER], "tools": TOOLS + TOOLS},
    "tool_round": {"messages": [SYSTEM, USER, CALL, TOOL, ANSWER], "tools": TOOLS},
    "tool_rounds": {"messages": [USER, CALLS, TOOL, TOOL, CALL, TOOL], "tools": TOOLS},
    "tool_call_without_list": {"messages": [USER, CALL, TOOL]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]},
    "two_users": {"messages": [USER, USER]},
    "assistant_first": {"messages": [ANSWER, USER]},
    "late_system": {"messages": [USER, SYSTEM, USER]},
    "odd_role": {"messages": [{"role": "wizard", "content": "x"}]},
    "null_content": {"messages": [{"role": "user", "content": None}]},
    "no_content": {"messages": [{"role": "user"}]},
    "number_content": {"messages": [{"role": "user", "content": 5}]},
    "empty": {"messages": []},
    "nasty_text": {"messages": [{"role": "user", "content": "{{ 1 }} {% x %} <|im_end|> \r\n\t\u0001\u2028</think>"}]},
}
