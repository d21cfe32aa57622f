"""Bars of several tests beside each other as SVG, without a plotting package."""
from xml.sax.saxutils import escape

COLOURS = {"nibble": "#2b6cb0", "llama.cpp": "#a0aec0", "OpenVINO": "#d69e2e"}
WIDTH, LABEL, ROW, GAP = 760, 170, 18, 44


def bars(tests, title):
    """tests: {test: {name: value}}; the colour goes by the first word of a name."""
    height = 40 + sum(GAP + ROW * len(rows) for rows in tests.values())
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{height}" fill="white"/>', f'<text x="10" y="24" font-size="15">{escape(title)}</text>']
    y = 40
    for test, rows in tests.items():
        y += GAP - 18
        out.append(f'<text x="10" y="{y}" font-weight="bold">{escape(test)}</text>')
        y += 8
        most = max(rows.values(), default=1)
        for name, value in sorted(rows.items(), key=lambda r: -r[1]):
            length = (WIDTH - LABEL - 80) * value / most
            out.append(f'<text x="{LABEL - 6}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
            out.append(f'<rect x="{LABEL}" y="{y + 2}" width="{length:.1f}" height="{ROW - 4}" fill="{COLOURS.get(name.split()[0], "#718096")}"/>')
            out.append(f'<text x="{LABEL + length + 5:.1f}" y="{y + 13}">{value:.1f}</text>')
            y += ROW
        y += 10
    return "\n".join(out + ["</svg>"]) + "\n"
