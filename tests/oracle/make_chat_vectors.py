"""Writes tests/data/jinja_cases.json and tests/data/chat_vectors.json: what jinja2, set up as Transformers sets it up,
makes of small templates and of the chat templates of real models.

    python tests/oracle/make_chat_vectors.py SHARED_DATA      (the folder that holds chat-templates/)

The chat templates are not ours: of their outputs only length and FNV-1a hash are kept.  Needs jinja2.
"""
import datetime
import json
import pathlib
import sys

try:
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment
except ImportError:
    sys.exit("make_chat_vectors.py: skipped, jinja2 is not installed")

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from jinja_cases import CASES, CONVERSATIONS  # noqa: E402


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_run"), [], [], body).set_lineno(line)

    def _run(self, caller):
        return caller()


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime.now().strftime(f)
    return env


def render(source, context):
    """(text, None) or (None, the error)"""
    try:
        text = environment().from_string(source).render(**context)
        text.encode("utf-8")
        return text, None
    except Exception as e:  # whatever Python raises, the template failed
        return None, f"{type(e).__name__}: {e}"


def fnv(text):
    h = 0xCBF29CE484222325
    for b in text.encode("utf-8"):
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def load_templates(folder):
    """name -> (source, special tokens as text)"""
    out = {}
    for p in sorted(folder.iterdir()):
        if p.suffix == ".jinja":
            out[p.name] = (p.read_text(encoding="utf-8"), {})
            continue
        config = json.loads(p.read_text(encoding="utf-8"))
        source = config.get("chat_template")
        if not isinstance(source, str):
            continue
        tokens = {}
        for key in ("bos_token", "eos_token"):
            v = config.get(key)
            v = v.get("content") if isinstance(v, dict) else v
            if v is not None:
                tokens[key] = v
        out[p.name] = (source, tokens)
    return out


def chat_rows(templates):
    rows = []
    for name, (source, tokens) in templates.items():
        for conversation, extra in CONVERSATIONS.items():
            for prompt in (False, True):
                context = {"tools": None, "documents": None, **tokens, **extra, "add_generation_prompt": prompt}
                text, error = render(source, context)
                row = {"template": name, "conversation": conversation, "add_generation_prompt": prompt}
                if error is None:
                    row.update(bytes=len(text.encode("utf-8")), fnv1a=fnv(text))
                else:
                    row["error"] = error
                rows.append(row)
    return rows


def write(path, value):
    lines = ",\n".join(json.dumps(v, ensure_ascii=True) for v in value["rows"])
    head = {k: v for k, v in value.items() if k != "rows"}
    text = json.dumps(head, ensure_ascii=True)[:-1] + (", " if head else "") + '"rows": [\n' + lines + "\n]}\n"
    path.write_text(text)


def main():
    data = pathlib.Path(__file__).parent.parent / "data"
    data.mkdir(exist_ok=True)
    rows = []
    for case in CASES:
        source, context = case if isinstance(case, tuple) else (case, {})
        text, error = render(source, context)
        rows.append({"template": source, "context": context, **({"text": text} if error is None else {"error": error})})
    write(data / "jinja_cases.json", {"rows": rows})
    if len(sys.argv) > 1:
        templates = load_templates(pathlib.Path(sys.argv[1]) / "chat-templates")
        write(data / "chat_vectors.json", {"conversations": CONVERSATIONS, "rows": chat_rows(templates)})


if __name__ == "__main__":
    main()
