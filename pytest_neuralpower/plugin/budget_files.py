"""Budget files, ``*.budget.yaml``: each of their models is a test on each platform."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, get_args, get_type_hints

import msgspec
import pytest
import yaml

from pytest_neuralpower.errors import BudgetFileError, NeuralPowerError
from pytest_neuralpower.files import read_text, shown, yaml_document
from pytest_neuralpower.guard.budget import MARKERS, parse_marker
from pytest_neuralpower.guard.tolerance import REGRESSION, parse_tolerance
from pytest_neuralpower.layers import CacheDtype, Engine, Experts, Quantization, Sampling
from pytest_neuralpower.model_source import (
    Imports,
    InputError,
    InputSpec,
    in_folder,
    load_model,
    make_inputs,
    read_input,
    refuse_one_shape,
)
from pytest_neuralpower.plugin.options import GUARD, SETTINGS, platform_at
from pytest_neuralpower.text import printable

# -- YAML with line numbers.


class Located(NamedTuple):
    """A value and its line; mappings and lists hold located values, everything else is plain."""

    value: Any
    line: int

    def plain(self) -> Any:
        """The value without lines, all the way down."""
        if isinstance(self.value, dict):
            return {key: each.plain() for key, each in self.value.items()}
        if isinstance(self.value, list):
            return [each.plain() for each in self.value]
        return self.value


def load(text: str, name: str) -> Located:
    """Read one YAML document; ``name`` is the file's, for messages.

    Raises
    ------
    BudgetFileError
        With file and line: it is not YAML, is empty, or has one key twice.
    """
    with yaml_document(text, file=name, error=BudgetFileError) as (loader, node):
        if node is None:
            raise BudgetFileError(f"{name}:1: the file is empty; it needs models:")
        return _located(loader, node, name)


def _located(loader: yaml.SafeLoader, node: yaml.Node, name: str) -> Located:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # merges << of anchors
        found: dict[Hashable, Located] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            where = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise BudgetFileError(f"{name}:{where}: a key must be a word, not {key!r}")
            if key in found:
                raise BudgetFileError(f"{name}:{where}: the key {key!r} is there twice; remove one")
            found[key] = _located(loader, value_node, name)._replace(line=where)
        return Located(found, line)
    if isinstance(node, yaml.SequenceNode):
        return Located([_located(loader, each, name) for each in node.value], line)
    return Located(loader.construct_object(node, deep=True), line)


# -- The schema.


class GenerationText(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A generation to predict: what :func:`pytest_neuralpower.generate` takes.

    Attributes
    ----------
    prompt, new_tokens, batch
        Tokens of each sample's prompt, tokens to generate, and samples.
    draft, draft_arguments
        Import path of a smaller model or its factory, and what to call that with.
    draft_tokens, acceptance, engine, sampling, quantization, kv_cache_dtype, experts
        As the function has them.
    """

    prompt: Annotated[int, msgspec.Meta(ge=1)]
    new_tokens: Annotated[int, msgspec.Meta(ge=1)]
    batch: Annotated[int, msgspec.Meta(ge=1)] = 1
    draft: ImportPath | None = None
    draft_arguments: dict[str, Any] = {}
    draft_tokens: Annotated[int, msgspec.Meta(ge=1)] = 4
    acceptance: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.8
    engine: Engine = "serving"
    sampling: Sampling = "top_p"
    quantization: Quantization = "none"
    kv_cache_dtype: CacheDtype = "auto"
    experts: Experts = "uniform"


class EntryText(msgspec.Struct, forbid_unknown_fields=True):
    """One model of a budget file, as it is written; ``defaults`` have the same fields.

    Attributes
    ----------
    model, arguments
        Import path of the model or its factory, and what to call that with.
    inputs
        Example inputs (:func:`~pytest_neuralpower.model_source.read_input`), or the import path of
        what makes them.
    generate
        In place of ``inputs``: the generation to predict, of a language model.
    platforms
        Names, or paths from the file on; the session's without.
    budgets
        Quantity -> one limit or several, each with the arguments of its marker.
    tolerance
        Arguments of the ``regression`` marker.
    tags
        Names to select by with ``-m``.
    """

    model: ImportPath
    arguments: dict[str, Any] = {}
    inputs: ImportPath | Annotated[list[Any], msgspec.Meta(min_length=1)] = []
    generate: GenerationText | None = None
    platforms: list[Name] = []
    budgets: dict[str, Any] | None = None
    tolerance: dict[str, Any] | None = None
    tags: list[Name] = []


class BudgetFileText(msgspec.Struct, forbid_unknown_fields=True):
    """A budget file as it is written: models by name, and fields of all of them."""

    models: dict[str, EntryText]
    defaults: dict[str, Any] = {}


ImportPath = Annotated[str, msgspec.Meta(pattern=":")]
Name = Annotated[str, msgspec.Meta(min_length=1)]

_GENERATE: Final = "{prompt: 2048, new_tokens: 256}"
#: What a field must be.
_MUST: Final = {
    "model": "package.module:name or path/to/file.py:name",
    "arguments": "a mapping of names to values",
    "inputs": "a list of inputs, or the import path of what makes them",
    "generate": f"a mapping, such as {_GENERATE}",
    "platforms": "a list of names",
    "budgets": "a mapping of energy, runtime, power",
    "tolerance": "a mapping, such as {max_percent: 2}",
    "tags": "a list of names",
}
_COUNT: Final = "a whole number from 1 on"
#: What a field of a generation must be.
_GENERATION_MUST: Final = {
    **dict.fromkeys(("prompt", "new_tokens", "batch", "draft_tokens"), _COUNT),
    "draft": _MUST["model"],
    "draft_arguments": _MUST["arguments"],
    "acceptance": "a number from 0 to 1",
    "engine": " or ".join(get_args(Engine)),
    "sampling": " or ".join(get_args(Sampling)),
    "quantization": " or ".join(get_args(Quantization)),
    "kv_cache_dtype": " or ".join(get_args(CacheDtype)),
    "experts": "uniform, a number of experts, or a share such as 0.5",
}
_TOP: Final = ("models", "defaults")
#: Quantity -> the marker that takes the same arguments.
_BUDGETS: Final = {quantity: marker for marker, quantity in MARKERS.items()}
#: Tags that would do something else.
_RESERVED: Final = (
    *("skip", "skipif", "xfail", "parametrize", "usefixtures", "filterwarnings", "regression"),
    *MARKERS,
)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of a budget file, checked: ``markers`` have their arguments."""

    name: str
    line: int
    model: str
    arguments: Mapping[str, Any]
    inputs: tuple[InputSpec, ...] | str
    generate: GenerationText | None
    platforms: tuple[str, ...]
    markers: tuple[tuple[str, Mapping[str, Any]], ...]
    tags: tuple[str, ...]


def read_entries(path: Path, shown: str) -> tuple[ModelEntry, ...]:
    """Read and check a budget file; ``shown`` is how messages call it.

    Raises
    ------
    BudgetFileError
        One line for each mistake, with file, line and what is allowed.
    """
    text = read_text(path, file=shown, error=BudgetFileError)
    return _Reader(shown).entries(load(text, shown))


#: So many mistakes of a file are told.
_MOST_MISTAKES: Final = 100


class _Reader:
    """Gathers all mistakes of a file, so that one run shows them all."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.wrong: list[str] = []

    def entries(self, document: Located) -> tuple[ModelEntry, ...]:
        top = self._mapping(document, "the file", _TOP)
        if document.value is not None and "models" not in top and not self.wrong:
            self._note(document.line, "it needs models:, a mapping of names to models")
        defaults = self._mapping(top.get("defaults"), "defaults", EntryText.__struct_fields__)
        models = self._mapping(top.get("models"), "models", None)
        if "models" in top and not models and not self.wrong:
            self._note(top["models"].line, "models: has no model")
        found = [self._entry(str(name), located, defaults) for name, located in models.items()]
        if self.wrong:
            raise BudgetFileError(*self.wrong)
        return tuple(found)

    def _note(self, line: int, what: str) -> None:
        self.wrong.append(f"{self.shown}:{line}: {what}")
        if len(self.wrong) == _MOST_MISTAKES:
            raise BudgetFileError(*self.wrong, f"{self.shown}: and perhaps more")

    def _mapping(
        self, located: Located | None, what: str, allowed: Sequence[str] | None
    ) -> dict[str, Located]:
        if located is None:
            return {}
        if not isinstance(located.value, dict):
            keys = f" of {', '.join(allowed)}" if allowed else ""
            given = shown(located.plain())
            self._note(located.line, f"{what} must be a mapping{keys}, not {given}")
            return {}
        for key, each in located.value.items():
            if allowed is not None and key not in allowed:
                close = difflib.get_close_matches(str(key), allowed, n=1)
                hint = f", did you mean {close[0]}?" if close else ""
                self._note(
                    each.line, f"unknown key {key!r} of {what}{hint}; allowed: {', '.join(allowed)}"
                )
        return dict(located.value)

    def _entry(self, name: str, located: Located, defaults: Mapping[str, Located]) -> ModelEntry:
        before, allowed = len(self.wrong), EntryText.__struct_fields__
        given = {**defaults, **self._mapping(located, name, allowed)}
        for key in ("model", "inputs"):
            known = key in given or (key == "inputs" and "generate" in given)
            if not known and len(self.wrong) == before:
                needed = "inputs: or generate:" if key == "inputs" else f"{key}:"
                self._note(located.line, f"{name} needs {needed}; allowed: {', '.join(allowed)}")
        if "inputs" in given and "generate" in given:
            self._note(given["generate"].line, f"{name} has inputs: and generate:; give one")
        if not given.keys() & {"budgets", "tolerance"}:
            self._note(located.line, f"{name} guards nothing: give budgets: or tolerance:")
        text = self._text(given)
        budgets = () if text.budgets is None else self._budgets(given["budgets"])
        markers = list(budgets)
        if text.tolerance is not None:
            with self._noting(given["tolerance"].line):
                parse_tolerance((), text.tolerance, "tolerance")
            markers.append((REGRESSION, text.tolerance))
        for tag in text.tags:
            if not tag.isidentifier() or tag in _RESERVED:
                self._note(
                    given["tags"].line, f"tags: {tag!r} must be a word that is not a pytest marker"
                )
        return ModelEntry(
            *(printable(name), located.line, text.model, text.arguments),
            text.inputs if isinstance(text.inputs, str) else self._inputs(given.get("inputs")),
            text.generate,
            tuple(dict.fromkeys(text.platforms)),
            tuple(markers),
            tuple(text.tags),
        )

    def _text(self, given: Mapping[str, Located]) -> EntryText:
        """The fields that are as they are declared; the others are noted, and left out."""
        found = EntryText(model="")
        for key in EntryText.__struct_fields__:
            if key not in given:
                continue
            value = given[key].plain()
            if key == "generate" and isinstance(value, dict):
                found.generate = self._generation(given[key])
                continue
            try:
                setattr(found, key, msgspec.convert(value, _TYPES[key]))
            except msgspec.ValidationError:
                must = _MUST["model" if key == "inputs" and type(value) is str else key]
                self._note(given[key].line, f"{key}: {shown(value)} must be {must}")
        return found

    def _generation(self, located: Located) -> GenerationText | None:
        """The generation, or None where a mistake in it was noted."""
        before = len(self.wrong)
        given = self._mapping(located, "generate", GenerationText.__struct_fields__)
        known = len(self.wrong) == before  # a key may be missing because it is mistyped
        for key in ("prompt", "new_tokens"):
            if known and key not in given:
                self._note(located.line, f"generate needs {key}:, such as {_GENERATE}")
        for key, each in given.items():
            if key not in _GENERATION_TYPES:
                continue
            try:
                msgspec.convert(each.plain(), _GENERATION_TYPES[key])
            except msgspec.ValidationError:
                must = _GENERATION_MUST[key]
                self._note(each.line, f"generate: {key}: {shown(each.plain())} must be {must}")
        if len(self.wrong) > before:
            return None
        return msgspec.convert(located.plain(), GenerationText)

    @contextmanager
    def _noting(self, line: int) -> Iterator[None]:
        try:
            yield
        except NeuralPowerError as error:
            self._note(line, str(error))

    def _inputs(self, located: Located | None) -> tuple[InputSpec, ...]:
        if located is None or not isinstance(located.value, list):
            return ()
        try:
            refuse_one_shape(located.plain())
        except InputError as error:
            self._note(located.line, str(error))
            return ()
        found = []
        for each in located.value:
            try:
                found.append(read_input(each.plain(), field="inputs:"))
            except InputError as error:
                at = each.line
                if isinstance(each.value, dict) and error.field in each.value.keys() - {"shape"}:
                    at = each.value[error.field].line
                self._note(at, str(error))
        return tuple(found)

    def _budgets(self, located: Located) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for quantity, limits in self._mapping(located, "budgets", tuple(_BUDGETS)).items():
            if quantity not in _BUDGETS:
                continue
            several = limits.value if isinstance(limits.value, list) else [limits]
            for limit in several:
                arguments = limit.plain()
                if type(arguments) is not dict:
                    unit = "mj" if quantity == "energy" else "ms"
                    what = f"must be a mapping of a unit to a number, such as {{{unit}: 120}}"
                    self._note(limit.line, f"{quantity}: {shown(arguments)} {what}")
                    continue
                with self._noting(limit.line):
                    parse_marker(_BUDGETS[quantity], (), arguments, in_file=True)
                yield _BUDGETS[quantity], arguments


#: Field -> its type.
_TYPES: Final = get_type_hints(EntryText, include_extras=True)
_GENERATION_TYPES: Final = get_type_hints(GenerationText, include_extras=True)


# -- pytest's collector and items.


class BudgetFile(pytest.File):
    """One ``*.budget.yaml``."""

    def collect(self) -> Iterable[BudgetItem]:
        """The models in the order of the file, once for each platform."""
        root = self.config.rootpath
        shown = self.path.relative_to(root) if self.path.is_relative_to(root) else self.path
        try:
            entries = read_entries(self.path, str(shown))
        except BudgetFileError as error:
            raise self.CollectError(str(error)) from None
        for entry in entries:
            given = [platform_at(each, self.path.parent) for each in entry.platforms]
            platforms = tuple(given) or self.config.stash[SETTINGS].platforms
            several = len(platforms) > 1
            for platform in platforms or (None,):
                yield BudgetItem.from_parent(
                    self,
                    name=f"{entry.name}[{platform}]" if several else entry.name,
                    entry=entry,
                    platform=platform,
                )


class BudgetItem(pytest.Item):
    """One model on one platform: its budgets are markers, its tags too.

    Attributes
    ----------
    neuralpower_platform
        The platform's name as it was asked for; None where none was chosen anywhere.
    """

    def __init__(self, *, entry: ModelEntry, platform: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.entry = entry
        self.neuralpower_platform = platform
        self.several_platforms = self.name != entry.name
        for tag in entry.tags:
            # What a budget file calls a tag need not be registered a second time.
            self.config.addinivalue_line("markers", f"{tag}: a tag of a budget file")
            self.add_marker(tag)
        for marker, arguments in entry.markers:
            named = arguments.get("platform")
            if named is None or platform is None or self._is(named):
                own = {} if platform is None else {"platform": self._from_anywhere(platform)}
                self.add_marker(getattr(pytest.mark, marker)(**{**arguments, **own}))

    def _from_anywhere(self, platform: str) -> str:
        """A path of a platform that means the same in a marker, wherever that is read."""
        return (
            platform
            if platform_at(platform, Path("x")) == platform
            else str(Path(platform).absolute())
        )

    def _is(self, named: str) -> bool:
        return platform_at(named, self.path.parent) == self.neuralpower_platform

    def runtest(self) -> None:
        """Build the model, and predict one call of it, or a generation."""
        from pytest_neuralpower.plugin.session import NeuralPower  # noqa: PLC0415

        entry, folder = self.entry, self.path.parent
        try:
            target = in_folder(entry.model, folder)
            imports = Imports(self.config.rootpath, self.config.stash[SETTINGS].allow_imports)
            model = load_model(target, dict(entry.arguments), in_file=True, imports=imports)
            neuralpower = NeuralPower(self.stash[GUARD])
            if entry.generate is None:
                args, kwargs = make_inputs(entry.inputs, folder, imports)
                neuralpower.predict(model.eval(), *args, **kwargs)
            else:
                options = msgspec.to_builtins(entry.generate)
                options.pop("draft_arguments", None)
                if entry.generate.draft is not None:
                    path = in_folder(entry.generate.draft, folder)
                    arguments = entry.generate.draft_arguments
                    draft = load_model(path, arguments, in_file=True, imports=imports)
                    options["draft"] = draft.eval()
                neuralpower.generate(model.eval(), **options)
        except NeuralPowerError as error:
            raise BudgetFileError(f"{self.location[0]}:{entry.line}: {error}") from None

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self.entry.line - 1, self.name
