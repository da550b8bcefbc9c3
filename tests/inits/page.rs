//! The table as a page.

use std::fmt::Write;

use super::init::Init;
use super::rows::{Row, SECTIONS};

/// What each init did in one scenario.
pub(crate) struct Line {
    pub(crate) row: Row,
    /// In the order of [`Init::COMPARED`].
    pub(crate) did: Vec<String>,
    /// What we do without `--restart never`.
    pub(crate) kept: String,
}

impl Line {
    fn differs(&self) -> bool {
        self.did[0] != self.did[1]
    }
}

/// Every difference from tini has its reason, and every reason a difference.
pub(crate) fn unexplained(lines: &[Line]) -> Vec<String> {
    let wrong = lines.iter().filter(|line| line.differs() != line.row.because.is_some());
    wrong.map(|line| format!("{}: {:?}", line.row.what, line.did)).collect()
}

pub(crate) fn render(lines: &[Line], versions: &str) -> String {
    let mut page = format!(include_str!("head.md"), versions = versions);
    page.push_str("\n| | | throng-rs | tini | dumb-init |\n|---|---|---|---|---|\n");
    let numbered = || lines.iter().enumerate().map(|(index, line)| (index + 1, line));
    for section in SECTIONS {
        let _ = writeln!(page, "| | **{section}** | | | |");
        for (number, line) in numbered().filter(|(_, line)| line.row.section == section) {
            let differs = if line.differs() { " ≠" } else { "" };
            let did = line.did.join(" | ");
            let _ = writeln!(page, "| {number}{differs} | {} | {did} |", line.row.what);
        }
    }
    page.push_str("\n## Where we differ from tini\n\n");
    // One reason may be that of many; each stands where it is needed first.
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for (number, line) in numbered() {
        let Some(because) = line.row.because else { continue };
        match reasons.iter_mut().find(|(known, _)| *known == because) {
            Some((_, numbers)) => numbers.push(number.to_string()),
            None => reasons.push((because, vec![number.to_string()])),
        }
    }
    for (because, numbers) in reasons {
        let _ = writeln!(page, "- **{}**: {because}", numbers.join(", "));
    }
    page.push_str(include_str!("kept.md"));
    page.push_str("\n| | | `--workers 1` | `--workers 1 --restart never` |\n|---|---|---|---|\n");
    for (number, line) in numbered().filter(|(_, line)| line.kept != line.did[0]) {
        let _ =
            writeln!(page, "| {number} | {} | {} | {} |", line.row.what, line.kept, line.did[0]);
    }
    page
}

/// Where the page differs. With other versions of the others only what we do is compared.
pub(crate) fn differences(written: &str, now: &str, versions: &str) -> String {
    let same_versions = written.contains(versions);
    let lines = |page: &str| -> Vec<String> {
        if same_versions {
            return page.lines().map(str::to_owned).collect();
        }
        let rows = page.lines().filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            Some(format!("{} | {}", cells.get(2)?, cells.get(3)?))
        });
        rows.collect()
    };
    let (written, now) = (lines(written), lines(now));
    let mut found = String::new();
    for line in written.iter().filter(|line| !now.contains(line)) {
        let _ = writeln!(found, "- {line}");
    }
    for line in now.iter().filter(|line| !written.contains(line)) {
        let _ = writeln!(found, "+ {line}");
    }
    if found.is_empty() && written != now {
        found.push_str("the lines are the same in another order or number\n");
    }
    found
}

/// The versions of the others, as the page names them.
pub(crate) fn versions() -> Result<String, String> {
    let [_, tini, dumb_init] = Init::COMPARED;
    Ok(format!("{} and {}", tini.version()?, dumb_init.version()?))
}
