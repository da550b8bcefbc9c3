//! A diagnosis for people and programs. The text fits a narrow terminal: sentences are wrapped, and
//! there is no table that could break.

use std::fmt::Write as _;

use serde::Serialize;

use crate::doctor::{Diagnosis, Finding, Opinion, Ours, Severity, Verdict};
use crate::units::{plural, printable, show_number, show_size};

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";

/// The least width that is still wrapped for: below it every word would be a line.
const NARROWEST: usize = 30;

/// The whole report, wrapped to `width` columns.
pub(crate) fn text(diagnosis: &Diagnosis, width: usize, color: bool) -> String {
    let mut page = Page { out: String::new(), width: width.max(NARROWEST), color };
    page.ours(&diagnosis.ours);
    let (asked, computed): (Vec<_>, Vec<_>) =
        diagnosis.opinions.iter().partition(|opinion| opinion.asked);
    let groups = [
        ("What others say (asked)", asked),
        ("What others believe (by their documented algorithms; nothing was started)", computed),
    ];
    for (heading, opinions) in groups.into_iter().filter(|(_, opinions)| !opinions.is_empty()) {
        page.heading(heading);
        for opinion in opinions {
            page.opinion(opinion);
        }
    }
    if !diagnosis.findings.is_empty() {
        page.heading("What to look at");
        for finding in &diagnosis.findings {
            page.finding(finding);
        }
    }
    page.out.push('\n');
    let (code, verdict) = verdict(diagnosis);
    page.paragraph(0, 0, code, &verdict);
    page.out
}

fn verdict(diagnosis: &Diagnosis) -> (&'static str, String) {
    let counted =
        [(Severity::Problem, "problem"), (Severity::Warning, "warning"), (Severity::Note, "note")];
    let parts: Vec<_> = counted
        .into_iter()
        .map(|(severity, noun)| (diagnosis.count(severity) as u64, noun))
        .filter(|(count, _)| *count > 0)
        .map(|(count, noun)| plural(count, noun))
        .collect();
    let code = match diagnosis.findings.first().map(|worst| worst.severity) {
        Some(Severity::Problem) => RED,
        Some(Severity::Warning) => YELLOW,
        _ => GREEN,
    };
    let text =
        if parts.is_empty() { "nothing to complain of".to_owned() } else { parts.join(", ") };
    (code, text)
}

struct Page {
    out: String,
    width: usize,
    color: bool,
}

impl Page {
    fn heading(&mut self, text: &str) {
        self.out.push('\n');
        self.paragraph(0, 0, BOLD, text);
    }

    fn ours(&mut self, ours: &Ours) {
        self.paragraph(0, 0, BOLD, "What this process has");
        let from = |source: &Option<String>| {
            source
                .as_ref()
                .map_or_else(|| "by assumption".to_owned(), |source| format!("by {source}"))
        };
        let cpus = show_number(ours.cpus);
        let cpus = if cpus == "0" { format!("{:.4}", ours.cpus) } else { cpus };
        let noun = if ours.cpus <= 1.0 { "CPU" } else { "CPUs" };
        self.paragraph(2, 4, "", &format!("{cpus} {noun}, {}", from(&ours.cpus_source)));
        let memory = match ours.memory_bytes {
            Some(bytes) => format!("{} of memory, {}", show_size(bytes), from(&ours.memory_source)),
            None => "memory: no limit is known".to_owned(),
        };
        self.paragraph(2, 4, "", &memory);
        let workers = plural(ours.workers, "worker");
        self.paragraph(2, 4, "", &format!("{workers} ({} says why)", "throng-rs --dry-run"));
        let pretended = [&ours.cpus_source, &ours.memory_source].into_iter().flatten();
        let note = if pretended.into_iter().any(|source| source.starts_with("flag:")) {
            "What comes by a flag is pretended; the others know nothing of it."
        } else {
            "This is what the kernel holds the process to: believe it where others differ."
        };
        self.paragraph(2, 2, DIM, note);
    }

    fn opinion(&mut self, opinion: &Opinion) {
        self.paragraph(2, 4, "", opinion.who);
        if let Some(cpus) = &opinion.cpus {
            self.line(cpus, |cpus| plural(*cpus, "CPU"));
        }
        if let Some(memory) = &opinion.memory_bytes {
            self.line(memory, |bytes| format!("{} of memory", show_size(*bytes)));
        }
        if let Some(heap) = &opinion.heap_bytes {
            self.line(heap, |bytes| format!("heap up to {}", show_size(*bytes)));
        }
    }

    fn line<T>(&mut self, verdict: &Verdict<T>, show: impl Fn(&T) -> String) {
        let value = verdict.value.as_ref().map_or_else(|| "no answer".to_owned(), show);
        let code = match verdict.agrees {
            Some(true) => GREEN,
            Some(false) => YELLOW,
            None => "",
        };
        self.paragraph(4, 6, code, &format!("{value}: {}", verdict.why));
    }

    fn finding(&mut self, finding: &Finding) {
        let (code, name) = match finding.severity {
            Severity::Problem => (RED, "problem"),
            Severity::Warning => (YELLOW, "warning"),
            Severity::Note => (DIM, "note"),
        };
        let text =
            if finding.text.is_empty() { String::new() } else { format!(": {}", finding.text) };
        self.paragraph(2, 4, code, &format!("{name} {}", finding.id));
        self.paragraph(4, 6, DIM, &format!("{}{text}", finding.source));
        self.paragraph(4, 4, "", &finding.what);
        self.paragraph(4, 4, "", &format!("→ {}", finding.remedy));
    }

    /// Words in lines of at most the width, the first indented by `first`, the others by `rest`. A
    /// word that is longer than a line, such as a path, stays whole so that it can be copied.
    fn paragraph(&mut self, first: usize, rest: usize, code: &str, text: &str) {
        let painted = self.color && !code.is_empty();
        let text = printable(text);
        let mut lines: Vec<String> = Vec::new();
        for word in text.split(' ').filter(|word| !word.is_empty()) {
            let indent = if lines.len() <= 1 { first } else { rest };
            match lines.last_mut() {
                Some(line)
                    if indent + line.chars().count() + 1 + word.chars().count() <= self.width =>
                {
                    line.push(' ');
                    line.push_str(word);
                }
                _ => lines.push(word.to_owned()),
            }
        }
        for (at, line) in lines.iter().enumerate() {
            let indent = if at == 0 { first } else { rest };
            // Writing to a String cannot fail.
            let _ = if painted {
                writeln!(self.out, "{:indent$}{code}{line}{RESET}", "")
            } else {
                writeln!(self.out, "{:indent$}{line}", "")
            };
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    ours: &'a Ours,
    opinions: &'a [Opinion],
    findings: &'a [Finding],
    problems: usize,
    warnings: usize,
    notes: usize,
}

/// Indented JSON with a newline at its end; fields may be added, none changes its meaning.
pub(crate) fn json(diagnosis: &Diagnosis) -> String {
    let report = Report {
        schema: 1,
        ours: &diagnosis.ours,
        opinions: &diagnosis.opinions,
        findings: &diagnosis.findings,
        problems: diagnosis.count(Severity::Problem),
        warnings: diagnosis.count(Severity::Warning),
        notes: diagnosis.count(Severity::Note),
    };
    // Only a map with keys that are no strings could fail, and there is none.
    let mut text = serde_json::to_string_pretty(&report).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_line_is_wider_unless_one_word_is(text in "[a-z /]{0,300}", width in 30usize..120) {
            let mut page = Page { out: String::new(), width, color: false };
            page.paragraph(4, 6, RED, &text);
            for line in page.out.lines() {
                prop_assert!(line.chars().count() <= width || !line.trim().contains(' '));
            }
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            prop_assert_eq!(words(&page.out), words(&text));
        }
    }
}
