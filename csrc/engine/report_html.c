/* quant_report.html: plots drawn as SVG by hand, so that the page needs nothing but itself. */
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "engine/report.h"
#include "nibble.h"

#define WIDTH  860 /* of a plot, in CSS pixels */
#define HEIGHT 200
#define LEFT   56 /* margins: numbers of the y axis; names below */
#define BOTTOM 24

static const char head[] =
    "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>nibble: quantization report</title>\n"
    "<style>body{font:14px/1.4 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;font-size:12px}td,th{padding:2px 8px;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}"
    "svg{display:block;margin:.5em 0 1.5em}text{font-size:11px;fill:#444}.axis{stroke:#999}.grid{stroke:#eee}"
    ".a{fill:#3b6ea5}.b{fill:#d08a2e}</style></head><body>\n";

static void put_escaped(nbi_str *s, const char *text)
{
    for (; text && *text; text++)
        if (*text == '&')
            nbi_str_puts(s, "&amp;");
        else if (*text == '<')
            nbi_str_puts(s, "&lt;");
        else if (*text == '>')
            nbi_str_puts(s, "&gt;");
        else if (*text == '"')
            nbi_str_puts(s, "&quot;");
        else if (*text == '\'')
            nbi_str_puts(s, "&#39;");
        else
            nbi_str_add(s, text, 1);
}

static const char *text_of(const json_t *o, const char *key)
{
    const char *t = json_string_value(json_object_get(o, key));
    return t ? t : "";
}

/* NaN: the key is missing, or null. */
static double number_of(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

/* ---- plots ---- */

typedef struct plot {
    nbi_str *s;
    double lo, hi; /* of the y axis */
    size_t n;      /* places on the x axis */
} plot;

static double x_of(const plot *p, double i)
{
    return LEFT + (WIDTH - LEFT - 8) * (i + 0.5) / (double)(p->n ? p->n : 1);
}

static double y_of(const plot *p, double v)
{
    return 8 + (HEIGHT - BOTTOM - 8) * (p->hi > p->lo ? (p->hi - v) / (p->hi - p->lo) : 0.5);
}

static void open_plot(const plot *p, const char *title)
{
    nbi_str_puts(p->s, "<h2>");
    put_escaped(p->s, title);
    nbi_str_printf(p->s,
                   "</h2>\n<svg width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" role=\"img\" "
                   "aria-label=\"",
                   WIDTH, HEIGHT, WIDTH, HEIGHT);
    put_escaped(p->s, title);
    nbi_str_puts(p->s, "\">\n");
    for (int i = 0; i <= 4; i++) {
        const double v = p->lo + (p->hi - p->lo) * i / 4, y = y_of(p, v);
        nbi_str_printf(p->s,
                       "<line class=\"%s\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
                       "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>\n",
                       i ? "grid" : "axis", LEFT, WIDTH - 8, y, y, LEFT - 6, y + 4, v);
    }
}

static void close_plot(const plot *p)
{
    nbi_str_puts(p->s, "</svg>\n");
}

/* A place with the title that a mouse finds. */
static void put_title(const plot *p, const char *name, double value, const char *unit)
{
    nbi_str_puts(p->s, "<title>");
    put_escaped(p->s, name);
    nbi_str_printf(p->s, ": %.4g %s</title>", value, unit);
}

static void bar(const plot *p, size_t i, double v, const char *name, const char *unit)
{
    const double w = fmax(0.5, 0.8 * (WIDTH - LEFT - 8) / (double)(p->n ? p->n : 1)), y = y_of(p, v);
    nbi_str_printf(p->s, "<rect class=\"a\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\">",
                   x_of(p, (double)i) - w / 2, y, w, y_of(p, p->lo) - y);
    put_title(p, name, v, unit);
    nbi_str_puts(p->s, "</rect>\n");
}

static void dot(const plot *p, size_t i, double v, const char *name, const char *unit, const char *cls)
{
    nbi_str_printf(p->s, "<circle class=\"%s\" cx=\"%.2f\" cy=\"%.2f\" r=\"3\">", cls, x_of(p, (double)i), y_of(p, v));
    put_title(p, name, v, unit);
    nbi_str_puts(p->s, "</circle>\n");
}

static double largest(const json_t *rows, const char *key)
{
    size_t i;
    const json_t *row;
    double top = 0;
    json_array_foreach((json_t *)rows, i, row) top = fmax(top, number_of(row, key)); /* fmax() leaves a NaN out */
    return top;
}

static void plot_bits(nbi_str *s, const json_t *rows)
{
    const plot p = {s, 0, fmax(1, ceil(largest(rows, "bits_per_weight"))), json_array_size(rows)};
    size_t i;
    const json_t *row;
    open_plot(&p, "Bits a weight, layer by layer (scales and zero points included)");
    json_array_foreach((json_t *)rows, i, row)
        bar(&p, i, number_of(row, "bits_per_weight"), text_of(row, "module"), "bits");
    close_plot(&p);
}

static void plot_sqnr(nbi_str *s, const json_t *rows)
{
    const double top = fmax(largest(rows, "sqnr_db"), largest(rows, "output_sqnr_db"));
    const plot p = {s, 0, fmax(10, 10 * ceil(top / 10)), json_array_size(rows)};
    size_t i;
    const json_t *row;
    open_plot(&p, "Signal to noise in dB: weights (blue) and outputs on the calibration text (orange)");
    json_array_foreach((json_t *)rows, i, row)
    {
        const double w = number_of(row, "sqnr_db"), o = number_of(row, "output_sqnr_db");
        if (isfinite(w))
            dot(&p, i, fmax(w, 0), text_of(row, "module"), "dB, weights", "a");
        if (isfinite(o))
            dot(&p, i, fmax(o, 0), text_of(row, "module"), "dB, outputs", "b");
    }
    close_plot(&p);
}

/* All layers' histograms have the same grid of half powers of two: they add up. */
static void plot_scales(nbi_str *s, const json_t *rows)
{
    enum { BINS = 640, ZERO = 320 };
    double counts[BINS] = {0}, top = 0;
    size_t i, k, lo = BINS, hi = 0;
    const json_t *row, *v;
    json_array_foreach((json_t *)rows, i, row)
    {
        const json_t *o = json_object_get(row, "scales");
        const json_int_t first = json_integer_value(json_object_get(o, "first_half_log2")) + ZERO;
        json_array_foreach(json_object_get(o, "histogram"), k, v)
        {
            const json_int_t at = first + (json_int_t)k;
            if (at >= 0 && at < BINS)
                counts[at] += json_number_value(v);
        }
    }
    for (i = 0; i < BINS; i++)
        if (counts[i] > 0) {
            lo = i < lo ? i : lo;
            hi = i;
            top = fmax(top, counts[i]);
        }
    if (lo > hi)
        return;
    const plot p = {s, 0, top, hi - lo + 1};
    open_plot(&p, "Scales of all layers by size, in steps of half a power of two");
    for (i = lo; i <= hi; i++) {
        char name[48];
        const int half = (int)i - ZERO;
        snprintf(name, sizeof name, "2^%.1f to 2^%.1f", half / 2.0, (half + 1) / 2.0);
        bar(&p, i - lo, counts[i], name, "scales");
        if (p.n <= 24 || (i - lo) % (p.n / 12) == 0)
            nbi_str_printf(s, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.1f</text>\n",
                           x_of(&p, (double)(i - lo)), HEIGHT - 8, half / 2.0);
    }
    nbi_str_printf(s, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">log2</text>\n", LEFT - 6, HEIGHT - 8);
    close_plot(&p);
}

/* ---- tables ---- */

static void put_cell(nbi_str *s, double v, bool percent)
{
    if (!isfinite(v))
        nbi_str_puts(s, "<td>&ndash;</td>");
    else if (percent)
        nbi_str_printf(s, "<td>%.3f %%</td>", 100 * v);
    else
        nbi_str_printf(s, "<td>%.4g</td>", v);
}

static void put_layers(nbi_str *s, const json_t *rows)
{
    size_t i;
    const json_t *row;
    nbi_str_puts(s,
                 "<h2>Layers</h2>\n<table><tr><th>module</th><th>scheme</th><th>bits a weight</th><th>weights, dB</th>"
                 "<th>outputs, dB</th><th>outlying weights</th><th>outlying inputs</th><th>smallest scale</th>"
                 "<th>quartile</th><th>median</th><th>quartile</th><th>largest</th></tr>\n");
    json_array_foreach((json_t *)rows, i, row)
    {
        static const char *const scales[] = {"min", "q1", "median", "q3", "max"};
        nbi_str_puts(s, "<tr><td>");
        put_escaped(s, text_of(row, "module"));
        nbi_str_puts(s, "</td><td>");
        put_escaped(s, text_of(row, "scheme"));
        nbi_str_puts(s, "</td>");
        put_cell(s, number_of(row, "bits_per_weight"), false);
        put_cell(s, number_of(row, "sqnr_db"), false);
        put_cell(s, number_of(row, "output_sqnr_db"), false);
        put_cell(s, number_of(row, "outlier_weights"), true);
        put_cell(s, number_of(row, "outlier_inputs"), true);
        for (size_t k = 0; k < sizeof scales / sizeof *scales; k++)
            put_cell(s, number_of(json_object_get(row, "scales"), scales[k]), false);
        nbi_str_puts(s, "</tr>\n");
    }
    nbi_str_puts(s, "</table>\n");
}

/* What a search measured: a row a layer, each choice with its cost, the chosen one in bold. */
static void put_search(nbi_str *s, const json_t *search)
{
    size_t i, k;
    const json_t *row, *c;
    const char *by = text_of(search, "by");
    if (!search)
        return;
    nbi_str_printf(s,
                   "<h2>Search: what each scheme costs each layer</h2>\n<p>%s; %.3f bits a weight on average. The "
                   "chosen one is bold.</p>\n<table>\n",
                   strcmp(by, "kl") == 0 ? "KL divergence of the logits in nats a token, that layer alone quantized"
                                         : "Relative squared error of its outputs",
                   number_of(search, "bits_per_weight"));
    json_array_foreach(json_object_get(search, "modules"), i, row)
    {
        nbi_str_puts(s, "<tr><td>");
        put_escaped(s, text_of(row, "module"));
        nbi_str_puts(s, "</td>");
        json_array_foreach(json_object_get(row, "choices"), k, c)
        {
            const char *tag = strcmp(text_of(c, "scheme"), text_of(row, "scheme")) == 0 ? "b" : "span";
            nbi_str_printf(s, "<td><%s>", tag);
            put_escaped(s, text_of(c, "scheme"));
            nbi_str_printf(s, ": %.3g</%s></td>", number_of(c, by), tag);
        }
        nbi_str_puts(s, "</tr>\n");
    }
    nbi_str_puts(s, "</table>\n");
}

nb_status nbi_report_html(char **out, const json_t *r)
{
    nbi_str s = {0};
    const json_t *rows = json_object_get(r, "modules");
    nbi_str_puts(&s, head);
    nbi_str_puts(&s, "<h1>Quantization report</h1>\n<p>Recipe <b>");
    put_escaped(&s, text_of(r, "recipe"));
    nbi_str_puts(&s, "</b>, method ");
    put_escaped(&s, text_of(r, "method"));
    nbi_str_printf(&s, ", nibble %s. %.1f MiB before, %.1f MiB after (%.2fx smaller); %zu layers quantized",
                   nb_version(), number_of(r, "bytes_before") / (1 << 20), number_of(r, "bytes_after") / (1 << 20),
                   number_of(r, "ratio"), json_array_size(rows));
    const double tokens = number_of(r, "calibration_tokens");
    if (tokens > 0)
        nbi_str_printf(&s, ", calibrated on %.0f tokens", tokens);
    nbi_str_puts(&s, ".</p>\n");
    plot_bits(&s, rows);
    plot_sqnr(&s, rows);
    plot_scales(&s, rows);
    put_search(&s, json_object_get(r, "search"));
    put_layers(&s, rows);
    nbi_str_puts(&s, "</body></html>\n");
    *out = nbi_str_take(&s);
    return *out ? NB_OK : nbi_fail_nomem("the report", 0);
}
