//! The curve as a picture: throughput and memory over the number of workers, with the knee and the bound of
//! memory marked. Plain SVG with its own background, so that it reads in light and dark.

use std::fmt::Write;

use super::curve::{Curve, Step};
use crate::units::{show_number, show_size};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 60.0;
const RATE: &str = "#1f6feb";
const MEMORY: &str = "#d1570a";

/// What the plot spans.
struct Scale {
    workers: f64,
    rate: f64,
    memory: f64,
}

impl Scale {
    fn x(&self, workers: f64) -> f64 {
        LEFT + workers / self.workers * (WIDTH - LEFT - RIGHT)
    }

    fn y(part: f64) -> f64 {
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    }
}

/// The whole picture; `title` is the command, `most` the memory that may be used, where that is known.
pub(crate) fn picture(
    curve: &Curve,
    title: &str,
    counts_requests: bool,
    most: Option<u64>,
) -> String {
    let sound: Vec<&Step> = curve.steps.iter().filter(|step| !step.cut).collect();
    let top = |of: fn(&Step) -> f64| sound.iter().map(|step| of(step)).fold(0.0, f64::max);
    // Only where the bound is near, or the curve would lie on the ground.
    let used = top(|step| float(step.used));
    let most = most.map(float).filter(|most| *most <= 4.0 * used);
    let scale = Scale {
        workers: round(top(|step| f64::from(step.workers))),
        rate: round(top(|step| step.rate)),
        memory: round_size(used.max(most.unwrap_or(0.0))),
    };
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\" role=\"img\">\n\
         <title>{0}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"14\" fill=\"#222222\">{0}</text>\n",
        escaped(title)
    );
    axes(&mut out, &scale, counts_requests);
    let rate = |step: &Step| step.rate / scale.rate;
    line(&mut out, &scale, &sound, RATE, &rate);
    let memory = |step: &Step| float(step.used) / scale.memory;
    line(&mut out, &scale, &sound, MEMORY, &memory);
    let knee = scale.x(f64::from(curve.knee.workers));
    let (low, high) = (Scale::y(0.0), Scale::y(1.0));
    let _ = writeln!(
        out,
        "<line x1=\"{knee:.1}\" y1=\"{low:.1}\" x2=\"{knee:.1}\" y2=\"{high:.1}\" stroke=\"#2da44e\" stroke-dasharray=\"4 3\"/>\n\
         <text x=\"{knee:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#2da44e\">{} are enough</text>",
        high - 6.0,
        curve.knee.workers
    );
    if let Some(most) = most {
        let y = Scale::y(most / scale.memory);
        let right = WIDTH - RIGHT;
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"{MEMORY}\" stroke-dasharray=\"2 4\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{MEMORY}\">memory that may be used</text>",
            LEFT + 6.0,
            y - 4.0
        );
    }
    out.push_str("</svg>\n");
    out
}

fn axes(out: &mut String, scale: &Scale, counts_requests: bool) {
    const TICKS: u32 = 4;
    let (low, high) = (Scale::y(0.0), Scale::y(1.0));
    let right = WIDTH - RIGHT;
    for tick in 0..=TICKS {
        let part = f64::from(tick) / f64::from(TICKS);
        let (x, y) = (scale.x(part * scale.workers), Scale::y(part));
        let number = |value: f64| show_number((value * 100.0).round() / 100.0);
        let (workers, rate) = (number(part * scale.workers), number(part * scale.rate));
        let memory = show_size(whole(part * scale.memory));
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#e5e5e5\"/>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444444\">{workers}</text>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{RATE}\">{rate}</text>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{MEMORY}\">{memory}</text>",
            low + 18.0,
            LEFT - 8.0,
            y + 4.0,
            right + 8.0,
            y + 4.0
        );
    }
    let unit = if counts_requests { "answers a second" } else { "CPUs used" };
    let _ = writeln!(
        out,
        "<line x1=\"{LEFT}\" y1=\"{low:.1}\" x2=\"{right}\" y2=\"{low:.1}\" stroke=\"#444444\"/>\n\
         <line x1=\"{LEFT}\" y1=\"{low:.1}\" x2=\"{LEFT}\" y2=\"{high:.1}\" stroke=\"#444444\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444444\">workers</text>\n\
         <text x=\"{LEFT}\" y=\"{:.1}\" fill=\"{RATE}\">{unit}</text>\n\
         <text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{MEMORY}\">memory in use</text>",
        LEFT.midpoint(right),
        low + 38.0,
        low + 38.0,
        low + 38.0
    );
}

fn line(
    out: &mut String,
    scale: &Scale,
    steps: &[&Step],
    color: &str,
    part: &dyn Fn(&Step) -> f64,
) {
    let points = steps.iter().map(|step| (scale.x(f64::from(step.workers)), Scale::y(part(step))));
    let points: Vec<(f64, f64)> = points.collect();
    let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
        path.join(" ")
    );
    for (x, y) in points {
        let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>");
    }
}

/// The next number of one digit and zeros, or of its half steps.
fn round(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0];
    steps.iter().map(|step| step * power).find(|top| *top >= value).unwrap_or(10.0 * power)
}

/// The same for sizes, whose units go by 1024.
fn round_size(bytes: f64) -> f64 {
    let unit = 1024_f64.powf((bytes.max(1.0).log2() / 10.0).floor());
    round(bytes / unit) * unit
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // XML has no form for most control characters.
    text.chars().filter(|c| !c.is_control()).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a picture needs no exact byte")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as above")]
fn whole(bytes: f64) -> u64 {
    bytes as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::curve::Bound;

    fn curve() -> Curve {
        let step = |workers, rate: f64| Step { workers, rate, used: 50 << 20, ..Step::default() };
        let cut = Step { cut: true, ..step(1000, 0.0) };
        let steps = vec![step(1, 10.0), step(2, 20.0), cut];
        Curve::new(steps, Bound::Memory, 1.0, None).unwrap()
    }

    #[test]
    fn every_point_lies_within_the_frame_and_the_title_is_text() {
        let svg = picture(&curve(), "sh -c 'a < b && \x1b c'", true, Some(60 << 20));
        assert!(svg.contains("sh -c 'a &lt; b &amp;&amp;  c'"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 4, "the step that was cut is left out");
        assert!(svg.contains(">2 are enough<") && svg.contains("memory that may be used"));
        for part in svg.split("cx=\"").skip(1) {
            let x: f64 = part.split('"').next().unwrap().parse().unwrap();
            assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{x}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_bound_that_is_far_away_is_left_out() {
        assert!(!picture(&curve(), "x", false, Some(60 << 30)).contains("may be used"));
    }

    #[test]
    fn scales_end_at_round_numbers() {
        for (value, top) in [(0.0, 1.0), (0.43, 0.6), (1.0, 1.0), (41.0, 60.0), (2050.0, 4000.0)] {
            assert!((round(value) - top).abs() < 1e-9, "{value}");
        }
        assert!((round_size(45.0 * 1_048_576.0) - 60.0 * 1_048_576.0).abs() < 1.0);
    }
}
