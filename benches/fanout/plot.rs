//! Plots as SVG, in greys and middle tones that can be read on white and on black.

use std::fmt::Write as _;

/// A line of a panel.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) colour: &'static str,
    pub(super) points: Vec<(f64, f64)>,
}

/// One pair of axes: across in powers of ten or of two, up from zero.
pub(super) struct Panel {
    pub(super) title: &'static str,
    pub(super) across: &'static str,
    pub(super) up: &'static str,
    /// A tick for each power of this.
    pub(super) base: f64,
    pub(super) lines: Vec<Line>,
}

pub(super) const BLUE: &str = "#3b82d0";
pub(super) const ORANGE: &str = "#d9772b";
pub(super) const GREEN: &str = "#3f9b58";
const GREY: &str = "#808080";

const COLUMNS: usize = 2;
/// Of a panel, and what its axes leave free at the left, top, right and bottom.
const SIZE: (f64, f64) = (460.0, 310.0);
const FREE: (f64, f64, f64, f64) = (64.0, 62.0, 30.0, 50.0);

/// All panels in one picture.
pub(super) fn svg(panels: &[Panel]) -> String {
    let (width, height) = (SIZE.0 * COLUMNS as f64, SIZE.1 * panels.len().div_ceil(COLUMNS) as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"{GREY}\">\n"
    );
    for (n, panel) in panels.iter().enumerate() {
        let (x, y) = (SIZE.0 * (n % COLUMNS) as f64, SIZE.1 * (n / COLUMNS) as f64);
        out.push_str(&format!("<g transform=\"translate({x} {y})\">\n{}</g>\n", draw(panel)));
    }
    out + "</svg>\n"
}

fn draw(panel: &Panel) -> String {
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let power = |x: f64| x.ln() / panel.base.ln();
    let first = points().map(|(x, _)| power(*x)).fold(f64::MAX, f64::min).floor();
    let last = points().map(|(x, _)| power(*x)).fold(first + 1.0, f64::max);
    let step = step(points().map(|(_, y)| *y).fold(0.0, f64::max));
    let top = (points().map(|(_, y)| *y).fold(0.0, f64::max) / step).ceil().max(1.0) * step;
    let (left, right, above, below) = (FREE.0, SIZE.0 - FREE.2, FREE.1, SIZE.1 - FREE.3);
    let at = |x: f64, y: f64| (left + (power(x) - first) / (last - first) * (right - left), below - y / top * (below - above));

    let mut out = String::new();
    text(&mut out, (left, 18.0), "start", &format!("<tspan font-weight=\"bold\">{}</tspan>", panel.title));
    text(&mut out, ((left + right) / 2.0, SIZE.1 - 14.0), "middle", panel.across);
    text(&mut out, (left - 8.0, above - 4.0), "end", panel.up);
    for n in 0..=(top / step).round() as usize {
        let value = step * n as f64;
        let (_, y) = at(1.0, value);
        rule(&mut out, (left, y), (right, y), if n == 0 { 1.0 } else { 0.3 });
        if value < top {
            text(&mut out, (left - 8.0, y + 4.0), "end", &number(value));
        }
    }
    for n in (first as i32)..=(last.floor() as i32) {
        let value = panel.base.powi(n);
        let (x, _) = at(value, 0.0);
        rule(&mut out, (x, below), (x, below + 5.0), 1.0);
        text(&mut out, (x, below + 18.0), "middle", &number(value));
    }
    let mut names = String::new();
    for (n, line) in panel.lines.iter().enumerate() {
        let places: Vec<_> = line.points.iter().map(|(x, y)| at(*x, *y)).collect();
        let path: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let colour = line.colour;
        writeln!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join(" ")).ok();
        for (x, y) in places {
            writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>").ok();
        }
        names.push_str(&format!("<tspan fill=\"{colour}\" dx=\"{}\">{}</tspan>", if n == 0 { 0 } else { 14 }, line.name));
    }
    text(&mut out, (left, 38.0), "start", &names);
    out
}

/// Between two lines, so that there are four to eight of them.
fn step(most: f64) -> f64 {
    let unit = 10f64.powf((most.max(1e-9) / 4.0).log10().floor());
    [5.0, 2.0, 1.0].into_iter().map(|n| n * unit).find(|step| most / step >= 3.0).unwrap_or(unit)
}

fn number(value: f64) -> String {
    let text = format!("{:.10}", value);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let digits: Vec<_> = whole.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    digits.join(",") + rest
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, what: &str) {
    writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{what}</text>").ok();
}

fn rule(out: &mut String, from: (f64, f64), to: (f64, f64), opacity: f64) {
    writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{GREY}\" stroke-opacity=\"{opacity}\"/>",
        from.0, from.1, to.0, to.1
    )
    .ok();
}
