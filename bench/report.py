"""Results of benchmarks: a table, a file and a picture. Ratios count; times are of one machine."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Result", "publish"]

_RESULTS = Path(__file__).parent / "results"
_BAR, _ROW, _LABELS, _WIDTH = 18, 26, 150, 760


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measure of ours and of the rivals. Less is better, but for a unit per second."""

    measure: str
    unit: str
    ours: float
    rivals: Mapping[str, float]

    @property
    def ratio(self) -> dict[str, float]:
        """Return by how many times Postbus is better than each rival."""
        more_is_better = self.unit.endswith("/s")
        return {
            name: round(self.ours / value if more_is_better else value / self.ours, 2)
            for name, value in self.rivals.items()
        }


def publish(suite: str, results: Sequence[Result]) -> None:
    """Print the table; write bench/results/SUITE.json and SUITE.svg."""
    for result in results:
        print(f"\n{result.measure} ({result.unit})")
        print(f"  {'ours':24}{result.ours:12.2f}")
        for name, value in result.rivals.items():
            print(f"  {name:24}{value:12.2f}   ours is {result.ratio[name]:.1f} times better")
    _RESULTS.mkdir(exist_ok=True)
    document = [asdict(result) | {"ratio": result.ratio} for result in results]
    (_RESULTS / f"{suite}.json").write_text(json.dumps(document, indent=2) + "\n")
    (_RESULTS / f"{suite}.svg").write_text(_picture(results))
    print(f"\nwritten to bench/results/{suite}.json and {suite}.svg")


def _picture(results: Sequence[Result]) -> str:
    """Return a picture with bars; the longest of a measure fills the width."""
    parts, y = [], 10
    for result in results:
        parts.append(f'<text x="10" y="{y + 14}" class="m">{result.measure} ({result.unit})</text>')
        y += _ROW
        values = {"ours": result.ours, **result.rivals}
        for name, value in values.items():
            width = max(2, round((_WIDTH - _LABELS - 90) * value / max(values.values())))
            kind = "ours" if name == "ours" else "rival"
            parts += [
                f'<text x="20" y="{y + 14}">{name}</text>',
                f'<rect x="{_LABELS}" y="{y}" width="{width}" height="{_BAR}" class="{kind}"/>',
                f'<text x="{_LABELS + width + 6}" y="{y + 14}">{value:,.1f}</text>',
            ]
            y += _ROW
        y += 10
    style = (
        "text{font:13px sans-serif;fill:#555}.m{font-weight:bold}.ours{fill:#2a7}.rival{fill:#aab}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}">'
        f"<style>{style}</style>{''.join(parts)}</svg>\n"
    )
