"""Text tables: plain, Markdown and LaTeX."""

from collections.abc import Sequence

_LATEX = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
_LATEX |= {"±": r"$\pm$", "…": r"\ldots{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format an aligned text table; the first column is left-aligned, the others are right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table in GitHub's Markdown."""
    lines = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Format a ``tabular`` with the rules of ``booktabs`` (``\usepackage{booktabs}``)."""
    lines = [" & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in row) + r" \\" for row in (header, *rows)]
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", *body, r"\end{tabular}"])
