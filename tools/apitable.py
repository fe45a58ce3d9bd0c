"""What stands on an API page for each function and class: its signature, and its arguments in a table (settings.ini names it as `renderer`)."""
import ast, inspect, re
from html import escape
from pathlib import Path
from typing import Annotated, get_origin

from fastcore.docments import docments
from nbdev.doclinks import NbdevLookup
from typer.main import get_command
from typer.models import OptionInfo, ParameterInfo

from sdfvq._modidx import d as INDEX

def said(annotation):
    "A type as one writes it, without the modules that it comes from."
    if annotation is inspect.Parameter.empty or annotation is None: return ''
    if get_origin(annotation) is Annotated: annotation = annotation.__origin__
    text = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, '__args__') else str(annotation)
    return re.sub(r'\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])', '', text)

def option(p):
    "What typer was told of a parameter of a command, or None."
    return next((m for m in getattr(p.annotation, '__metadata__', ()) if isinstance(m, ParameterInfo)), None)

def flags(p):
    "An option as one types it; none of an argument."
    if not isinstance(o := option(p), OptionInfo): return []
    said = [d for d in (o.default, *(o.param_decls or ())) if isinstance(d, str) and d.startswith('-')]    # within Annotated, the first is where the default was
    return said or ['--' + p.name.replace('_', '-')]

def cell(text): return ' '.join(str(text or '').split()).replace('|', '\\|')

def code(text):
    "In backticks, which nbdev links to what it knows; a bar would end the cell or, escaped, keep its backslash in them."
    return '' if not text else f'`{cell(text)}`' if '|' not in text else f"<code>{escape(text, False).replace('|', '&#124;')}</code>"

def parameters(thing):
    "Of a function, method or class, without self."
    try: found = inspect.signature(thing)
    except (ValueError, TypeError): return [], ''
    return [p for name, p in found.parameters.items() if name not in ('self', 'cls')], said(found.return_annotation if found.return_annotation is not found.empty else '')

def signature(name, thing):
    "`name(a, b=1)`, defaults as they are, over several lines if it is long."
    args, _ = parameters(thing)
    stars = {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}
    words = [stars.get(p.kind, '') + p.name + ('' if p.default is p.empty else f'={default(p)}') for p in args]
    line = f"{name}({', '.join(words)})"
    return f'```python\n{line}\n```' if len(line) < 90 else f'```python\n{name}(\n' + ''.join(f'    {w},\n' for w in words) + ')\n```'

def default(p):
    text = getattr(p.default, '__name__', None) or repr(p.default)
    return text if len(text) < 40 else '…'

def fields(name):
    "Comments of a dataclass's fields, from the library's file: of a class that a notebook's cell has just made, Python knows no source."
    for module in (m for m, names in INDEX['syms'].items() if f'{m}.{name}' in names):
        text = (Path(__file__).parent.parent/module.replace('.', '/')).with_suffix('.py').read_text(encoding='utf-8')
        for c in ast.parse(text).body:
            if not isinstance(c, ast.ClassDef) or c.name != name: continue
            after = {f.target.id: text.splitlines()[f.end_lineno - 1].encode()[f.end_col_offset:].decode() for f in c.body if isinstance(f, ast.AnnAssign)}
            return {k: m[1] for k, v in after.items() if (m := re.match(r'\s*#\s*(.*)', v))}
    return {}

def grid(rows): return '\n'.join(['| argument | type | default | |', '|---|---|---|---|', *('| ' + ' | '.join(r) + ' |' for r in rows)])

def table(thing):
    "Arguments with type, default and comment, and what comes back; nothing where no comment was written."
    args, returns = parameters(thing)
    comments = fields(thing.__name__) if inspect.isclass(thing) else {}
    try: comments |= {k: v for k, v in docments(thing).items() if v}
    except Exception: pass                           # no source at all: a builtin, or made by an enum
    # Names without backticks: nbdev would link them to whatever function is called so.
    rows = [(' '.join(f'<code>{n}</code>' for n in (p.name, *flags(p))), code(said(p.annotation)), '' if p.default is p.empty else code(default(p)),
             cell(comments.get(p.name) or getattr(option(p), 'help', ''))) for p in args]
    back = cell(comments.get('return'))
    if back or returns not in ('', 'None'): rows.append(('*returns*', code(returns), '', back))
    if not any(r[1] or r[3] for r in rows): return ''
    return grid(rows)

def methods(cls):
    "Name and function of the public methods and properties that a class itself defines and documents."
    for name, thing in vars(cls).items():
        thing = getattr(thing, '__func__', getattr(thing, 'fget', thing))
        if not name.startswith('_') and inspect.isfunction(thing) and thing.__doc__: yield name, thing, isinstance(vars(cls)[name], property)

def commands(app):
    "Every command of a click application as (words typed, command), groups opened."
    for name, command in app.commands.items():
        if command.hidden: continue
        if hasattr(command, 'commands'): yield from ((f'{name} {words}', inner) for words, inner in commands(command))
        else: yield name, command

def typed(p):
    "A parameter of a command as one types it: all names of an option, or an argument's place."
    if p.param_type_name == 'option': return [*p.opts, *p.secondary_opts]
    name = (p.metavar or p.name.upper()).removesuffix('...') + ('…' if p.nargs == -1 else '')
    return [name if p.required else f'[{name}]']

def usage(words, params):
    "The command with all that it must have."
    must = [' '.join([typed(p)[0], *([p.metavar or p.name.upper()] if p.param_type_name == 'option' else [])]) for p in params if p.required or p.param_type_name == 'argument']
    return ' '.join([words, *must, *(['[OPTIONS]'] if len(must) < len(params) else [])])

def parameter(p):
    "A parameter of a command as a row."
    start = '' if p.default in (None, '') or p.default is False else code(str(p.default))
    return ' '.join(f'<code>{n}</code>' for n in typed(p)), '' if p.type.name == 'boolean' else p.type.name, start, cell(p.help)

def command_line(app, program, order):
    "What `--help` says of all commands: an overview, then each with its arguments; in the order of the modules that they are from."
    found = [(f'{program} {words}', command, [p for p in command.params if not getattr(p, 'hidden', False)]) for words, command in commands(app)]
    found.sort(key=lambda f: (f[0].count(' '), order.index(f[1].callback.__module__)))
    overview = '\n'.join(['| command | |', '|---|---|', *(f"| [{words}](#{words.replace(' ', '-')}) | {cell(c.help)} |" for words, c, _ in found)])
    each = ('\n\n'.join([f'### {words}', f'```sh\n{usage(words, params)}\n```', c.help or '', grid(map(parameter, params))]) for words, c, params in found)
    return '\n\n'.join([overview, *each])

class Renderer:
    "What `show_doc` shows."
    def __init__(self, sym, name=None, title_level=3):
        self.name, self.level = name or getattr(sym, '__qualname__', None) or getattr(sym, '_name', str(sym)), title_level   # a custom op of torch has but the latter
        self.sym = getattr(sym, '_init_fn', sym)             # what stands behind the op, with its words

    def _repr_markdown_(self):
        home = getattr(self.sym, '__module__', '__main__')
        source = (NbdevLookup().code(self.name if home == '__main__' else f'{home}.{self.name}') or '').removesuffix('#LNone')
        link = [f'[source]({source}){{target="_blank" style="float:right; font-size:smaller"}}'] if source else []
        out = ['---', *link, f"{'#' * self.level} {self.name}", signature(self.name, self.sym), inspect.getdoc(self.sym) or '', table(self.sym)]
        if inspect.isclass(self.sym):
            for name, f, is_property in methods(self.sym):
                out += [f"{'#' * (self.level + 1)} {self.name}.{name}", '' if is_property else signature(name, f), inspect.getdoc(f), '' if is_property else table(f)]
        return '\n\n'.join(filter(None, [*out, self.said_by_help()]))

    def said_by_help(self):
        "The commands, below the function that starts them."
        if self.name != 'main': return ''
        from sdfvq import cli
        order = [room.__name__ for room in vars(cli).values() if inspect.ismodule(room)]    # other pages may have imported some of them before
        return command_line(get_command(cli.app), 'sdfvq', order)
    __repr__ = _repr_markdown_
