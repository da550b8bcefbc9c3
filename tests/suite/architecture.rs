//! The direction of dependencies, as `docs/architecture.md` draws it: no module names one above it.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module with those that it may name. Whoever adds one decides where it stands.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("exit", &[]),
    ("log", &["units"]),
    ("http", &[]),
    ("probe", &["units"]),
    ("plan", &["probe", "units"]),
    ("fleet", &["exit"]),
    ("found", &[]),
    ("sockets", &["units"]),
    ("control", &["http", "log", "units"]),
    ("doctor", &["plan", "probe", "units"]),
    ("calibrate", &["control", "found", "plan", "probe", "sockets", "units"]),
    ("report", &["control", "doctor", "plan", "probe", "units"]),
    ("engine", &["control", "exit", "fleet", "http", "log", "plan", "probe", "sockets", "units"]),
    ("cli", &[]),
    ("program", &["plan"]),
    ("fuzzing", &["probe", "program", "settings", "sockets", "units"]),
    (
        "settings",
        &["cli", "control", "exit", "fleet", "found", "plan", "probe", "sockets", "units"],
    ),
    (
        "command",
        &[
            "calibrate",
            "cli",
            "control",
            "doctor",
            "engine",
            "exit",
            "fleet",
            "log",
            "plan",
            "probe",
            "program",
            "report",
            "settings",
            "sockets",
            "units",
        ],
    ),
    ("lib", &["command", "plan", "probe"]),
    ("main", &[]),
];

/// What the pure modules must not name: clocks, processes, files, the runtime.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::process",
    "std::net",
    "std::thread",
    "Instant",
    "SystemTime",
    "tokio",
    "std::io",
    "nix::unistd",
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The top-level module of a file.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The names behind `crate::`, also in braces.
fn named(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0;
            for part in list.split(',') {
                if depth == 0 {
                    found.push(word(part.trim()));
                }
                depth += part.matches('{').count();
                depth = depth.saturating_sub(part.matches('}').count());
                if part.contains("};") {
                    break;
                }
            }
        } else {
            found.push(word(rest));
        }
    }
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

#[test]
fn no_module_names_one_above_it() {
    let files = sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    assert!(files.len() > 30);
    let mut wrong = Vec::new();
    for file in &files {
        let from = module(file);
        let Some((_, allowed)) = MAY_NAME.iter().find(|(name, _)| *name == from) else {
            wrong.push(format!("{} belongs to no module of the list", file.display()));
            continue;
        };
        for to in named(&fs::read_to_string(file).unwrap()) {
            if to != from && !allowed.contains(&to.as_str()) {
                wrong.push(format!("{} names crate::{to}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "against the arrow:\n{}", wrong.join("\n"));
}

#[test]
fn the_pure_modules_touch_nothing() {
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        if !["plan", "fleet"].contains(&module(&file).as_str()) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for name in IMPURE {
            assert!(!text.contains(name), "{} names {name}", file.display());
        }
    }
}

/// A wall clock may jump, by an administrator or by a machine that was asleep: what is due is known
/// by the monotonic one alone.
#[test]
fn no_wall_clock_decides() {
    let mut looked_at = 0;
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        if !["engine", "fleet"].contains(&module(&file).as_str()) {
            continue;
        }
        looked_at += 1;
        let text = fs::read_to_string(&file).unwrap();
        for name in ["SystemTime", "UNIX_EPOCH", "CLOCK_REALTIME", "gettimeofday", "chrono"] {
            assert!(!text.contains(name), "{} names {name}", file.display());
        }
    }
    assert!(looked_at > 20);
}

#[test]
fn the_check_sees_what_it_must() {
    assert_eq!(named("use crate::{a::{b, c}, d};\ncrate::e::f();\n// crate::g"), ["a", "d", "e"]);
}

#[test]
fn unsafe_code_is_where_it_must_be_and_explained() {
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
        let text = fs::read_to_string(&file).unwrap();
        let allowed =
            ["engine/spawn.rs", "sockets/adopt.rs"].iter().any(|name| file.ends_with(name));
        assert!(allowed || !text.contains("unsafe {"), "{}", file.display());
    }
}
