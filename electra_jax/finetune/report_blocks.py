"""What a report about predictions consists of: tables, matrices, calibration, scatters and errors.

A task makes the blocks (`HasReport`), a run writes them as JSON, and a page renders each by its
class. So neither files nor pages know tasks.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from electra_jax.finetune.tasks.task import Features, Outputs

Cell: TypeAlias = str | int | float | None

WORST = 20  # errors of a report
MOST_CHARACTERS = 600  # of a text that is shown
ELLIPSIS = ' […] '

# Marks of a part of a text.
RIGHT = 'right'  # given and predicted
MISSED = 'missed'  # given, not predicted
WRONG = 'wrong'  # predicted, not given


@dataclasses.dataclass(frozen=True)
class ReportBlock:
  """A part of a report.

  Attributes:
    name: by which `Report` finds it.
    title: a heading.
    note: a sentence below the heading; '' for none.
  """

  kind: ClassVar[str] = ''

  name: str
  title: str
  note: str = ''


@dataclasses.dataclass(frozen=True)
class ReportTable(ReportBlock):
  """A table. Fractions are not multiplied by 100; None is undefined.

  Attributes:
    header: titles of the columns.
    rows: their cells, as many as the header has.
  """

  kind: ClassVar[str] = 'table'

  header: tuple[str, ...] = ()
  rows: tuple[tuple[Cell, ...], ...] = ()

  def records(self) -> list[dict[str, Cell]]:
    """A dict per row, as `pandas.DataFrame` takes them."""
    return [dict(zip(self.header, row, strict=True)) for row in self.rows]


@dataclasses.dataclass(frozen=True)
class ConfusionMatrix(ReportBlock):
  """Counts of predicted labels for each given label.

  Attributes:
    given: names of the rows.
    predicted: names of the columns.
    counts: by row.
  """

  kind: ClassVar[str] = 'confusion'

  given: tuple[str, ...] = ()
  predicted: tuple[str, ...] = ()
  counts: tuple[tuple[int, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Calibration(ReportBlock):
  """Whether predictions with a probability of 80% are right in 80% of the cases.

  Attributes:
    bins: lowest and highest confidence of a bin, mean confidence, share that is right, and number
      of predictions. Bins without predictions are left out.
    values: names and values of summaries.
  """

  kind: ClassVar[str] = 'calibration'

  bins: tuple[tuple[float, float, float, float, int], ...] = ()
  values: tuple[tuple[str, Cell], ...] = ()

  @property
  def expected_error(self) -> float:
    """The expected calibration error, the mean of |right - stated| (Guo et al. 2017, eq. 5)."""
    count = sum(one[4] for one in self.bins)
    return sum(n * abs(right - stated) for _, _, stated, right, n in self.bins) / max(1, count)


@dataclasses.dataclass(frozen=True)
class Scatter(ReportBlock):
  """Predicted against given values, of at most a few thousand examples.

  Attributes:
    given: values of the data.
    predicted: values of the model, as many.
  """

  kind: ClassVar[str] = 'scatter'

  given: tuple[float, ...] = ()
  predicted: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class TextPart:
  """A part of a text, with RIGHT, MISSED, WRONG or no mark, and a label that is shown beside it."""

  text: str
  mark: str = ''
  label: str = ''


@dataclasses.dataclass(frozen=True)
class ReportError:
  """An example that the model gets wrong.

  Attributes:
    facts: names and values: what is given, what is predicted, and how surely.
    texts: of the example: a title ('' for none), and the parts of the text.
  """

  facts: tuple[tuple[str, Cell], ...]
  texts: tuple[tuple[str, tuple[TextPart, ...]], ...]


@dataclasses.dataclass(frozen=True)
class ErrorList(ReportBlock):
  """The worst errors, the worst first."""

  kind: ClassVar[str] = 'errors'

  errors: tuple[ReportError, ...] = ()


Blocks: TypeAlias = tuple[ReportBlock, ...]
_KINDS: dict[str, type[ReportBlock]] = {
  one.kind: one for one in (ReportTable, ConfusionMatrix, Calibration, Scatter, ErrorList)
}


@dataclasses.dataclass(frozen=True)
class Report:
  """A report about predictions of labeled examples.

  `report['classes']` is a block by its name: `classes`, `confusion`, `calibration`, `errors` and
  others, by the kind of task.

  Attributes:
    examples: number of examples.
    metrics: of the task.
    blocks: in the order in which they are shown.
  """

  examples: int
  metrics: Mapping[str, float]
  blocks: Blocks

  def __getitem__(self, name: str) -> Any:  # noqa: ANN401  a subclass of ReportBlock by the name
    for block in self.blocks:
      if block.name == name:
        return block
    raise KeyError(f'{name!r} is not in the report; it has {", ".join(map(repr, self.names))}.')

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the blocks."""
    return tuple(block.name for block in self.blocks)

  def to_json(self) -> dict[str, Any]:
    """Plain values for JSON; numbers that are not finite are left to the writer."""
    blocks = [{'kind': block.kind} | dataclasses.asdict(block) for block in self.blocks]
    return {'examples': self.examples, 'metrics': dict(self.metrics), 'blocks': blocks}


def report_of_json(content: Mapping[str, Any]) -> Report:
  """The report that `Report.to_json` described. Blocks of kinds that do not exist are left out."""
  blocks = []
  for described in content['blocks']:
    fields = {name: _as_tuples(value) for name, value in described.items() if name != 'kind'}
    kind = _KINDS.get(described['kind'])
    if kind is ErrorList:
      fields['errors'] = tuple(map(_error_of_json, described['errors']))
    if kind is not None:
      blocks.append(kind(**fields))
  return Report(content['examples'], content['metrics'], tuple(blocks))


def _error_of_json(content: Mapping[str, Any]) -> ReportError:
  texts = tuple(
    (title, tuple(TextPart(**part) for part in parts)) for title, parts in content['texts']
  )
  return ReportError(_as_tuples(content['facts']), texts)


def _as_tuples(value: Any) -> Any:  # noqa: ANN401  any value of JSON
  return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


@runtime_checkable
class HasReport(Protocol):
  """A task that reports on its predictions beyond its metrics."""

  def report(self, examples: Sequence[Any], features: Features, outputs: Outputs) -> Blocks:
    """Blocks about the predictions of labeled examples; examples without a label are left out.

    Args:
      examples: of the task.
      features: their rows.
      outputs: of the model for these rows.
    """


def report_blocks(
  task: object, examples: Sequence[Any], features: Features, outputs: Outputs
) -> Blocks:
  """The blocks of a task's report; () for a task of user code without the method `report`."""
  if not isinstance(task, HasReport):
    return ()
  return task.report(examples, features, outputs)


#### Texts ####


def unmarked_text(text: str, title: str = '') -> tuple[str, tuple[TextPart, ...]]:
  """A text of a `ReportError` without marks, cut to MOST_CHARACTERS."""
  return title, shortened([TextPart(text)])


def shortened(parts: Iterable[TextPart], most: int = MOST_CHARACTERS) -> tuple[TextPart, ...]:
  """Parts without a mark are cut in their middle, so that about `most` characters remain.

  Args:
    parts: of a text.
    most: characters of the text.
  """
  kept = [part for part in parts if part.text]
  excess = sum(len(part.text) for part in kept) - most
  for i in sorted(range(len(kept)), key=lambda i: -len(kept[i].text)):
    part = kept[i]
    remaining = max(len(part.text) - max(excess, 0), 80)
    if excess <= 0 or part.mark or remaining + len(ELLIPSIS) >= len(part.text):
      continue
    excess -= len(part.text) - remaining
    head, tail = (remaining + 1) // 2, remaining // 2
    text = f'{part.text[:head]}{ELLIPSIS}{part.text[-tail:]}'
    kept[i] = dataclasses.replace(part, text=text)
  return tuple(kept)


def marked_text(text: str, spans: Iterable[tuple[int, int, str, str]]) -> tuple[TextPart, ...]:
  """The parts of a text in which some spans are marked.

  Args:
    text: the text.
    spans: first character, the one after the last, mark and label. A span that overlaps an earlier
      one is shortened to what follows that.
  """
  parts: list[TextPart] = []
  done = 0
  for start, end, mark, label in sorted(spans):
    start = max(start, done)
    if end > start:
      parts += [TextPart(text[done:start]), TextPart(text[start:end], mark, label)]
      done = end
  return shortened([*parts, TextPart(text[done:])])


def worst_first(badness: Iterable[tuple[float, int]], most: int = WORST) -> list[int]:
  """Indices by descending badness, at most `most` of them; of equal ones the first come first."""
  ordered = sorted(badness, key=lambda pair: (-pair[0], pair[1]))
  return [index for _, index in itertools.islice(ordered, most)]
