//! The table, and what must hold.

use std::process::ExitCode;

/// What one method chose in one cell.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) method: &'static str,
    pub(crate) workers: u64,
    pub(crate) regret: f64,
    pub(crate) kills: u64,
}

/// One load in one box.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) name: String,
    /// The best number, and its answers a second.
    pub(crate) best: u32,
    pub(crate) rate: f64,
    pub(crate) choices: Vec<Choice>,
}

/// What a method may lose.
struct Bar {
    method: &'static str,
    mean: f64,
    worst: f64,
}

const BARS: &[Bar] = &[
    Bar { method: super::ours::ADAPT, mean: 0.10, worst: 0.25 },
    Bar { method: super::ours::CALIBRATED, mean: 0.05, worst: 1.0 },
];

/// Prints the table; the status is 1 where `--check` was given and a limit is exceeded.
pub(crate) fn end(cells: &[Cell]) -> ExitCode {
    let methods: Vec<&str> = cells
        .first()
        .map(|cell| &cell.choices[..])
        .unwrap_or_default()
        .iter()
        .map(|choice| choice.method)
        .collect();
    println!("| load, box | best N | answers/s | {} |", methods.join(" | "));
    println!("|---|---|---|{}", "---|".repeat(methods.len()));
    for cell in cells {
        let choices = cell.choices.iter().map(|choice| {
            let killed = if choice.kills > 0 { " OOM" } else { "" };
            format!("{}: {:.2}{killed}", choice.workers, choice.regret)
        });
        let choices: Vec<_> = choices.collect();
        println!("| {} | {} | {:.1} | {} |", cell.name, cell.best, cell.rate, choices.join(" | "));
    }
    let row = |name: &str, of: fn(&[f64]) -> f64| {
        let all = methods.iter().map(|method| format!("**{:.2}**", of(&regrets(cells, method))));
        println!("| **{name} regret** | | | {} |", all.collect::<Vec<_>>().join(" | "));
    };
    row("mean", mean);
    row("worst", worst);
    let mut kept = true;
    for bar in BARS.iter().filter(|bar| methods.contains(&bar.method)) {
        let regrets = regrets(cells, bar.method);
        let kills: u64 = chosen(cells, bar.method).map(|choice| choice.kills).sum();
        let (mean, worst) = (mean(&regrets), worst(&regrets));
        let good = mean <= bar.mean && worst <= bar.worst && kills == 0;
        kept &= good;
        println!(
            "\n{}: mean {mean:.3} (at most {}), worst {worst:.3} (at most {}), {kills} killed: {}",
            bar.method,
            bar.mean,
            bar.worst,
            if good { "ok" } else { "OVER" }
        );
    }
    let check = std::env::args().any(|arg| arg == "--check");
    ExitCode::from(u8::from(check && !kept))
}

fn chosen<'a>(cells: &'a [Cell], method: &'a str) -> impl Iterator<Item = &'a Choice> {
    cells.iter().flat_map(|cell| &cell.choices).filter(move |choice| choice.method == method)
}

fn regrets(cells: &[Cell], method: &str) -> Vec<f64> {
    chosen(cells, method).map(|choice| choice.regret).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a few cells")]
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn worst(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
