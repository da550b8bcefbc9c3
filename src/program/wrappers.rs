//! What people put in front of the real program, as a table. Pure.

/// How many layers there may be.
const DEEPEST: usize = 8;

/// What a wrapper takes before the program.
enum Takes {
    /// Options, of which these have a value behind them, then so many words of its own.
    Options(&'static [&'static str], usize),
    /// A second word that is one of these, then options.
    Then(&'static [&'static str]),
    /// `-c` and a script.
    Script,
}

const WRAPPERS: &[(&[&str], Takes)] = &[
    (&["env"], Takes::Options(&["-u", "--unset", "-C", "--chdir"], 0)),
    (&["npx", "bunx"], Takes::Options(&["-p", "--package"], 0)),
    (&["npm"], Takes::Then(&["exec", "x"])),
    (&["pnpm", "yarn"], Takes::Then(&["exec", "dlx"])),
    (&["bundle"], Takes::Then(&["exec"])),
    (&["poetry", "pipenv", "uv", "pdm", "hatch", "rye"], Takes::Then(&["run"])),
    (&["nice", "ionice"], Takes::Options(&["-n", "-c", "--adjustment", "--class"], 0)),
    (&["timeout"], Takes::Options(&["-k", "-s", "--kill-after", "--signal"], 1)),
    (&["stdbuf"], Takes::Options(&["-i", "-o", "-e"], 0)),
    (&["nohup", "exec", "time", "setsid"], Takes::Options(&[], 0)),
    (&["setpriv"], Takes::Options(&[], 0)),
    (&["chpst"], Takes::Options(&["-u", "-U", "-e", "-n", "-m"], 0)),
    (&["su-exec", "gosu"], Takes::Options(&[], 1)),
    (&["tini", "dumb-init", "catatonit"], Takes::Options(&["-e", "-p", "-r"], 0)),
    (&["sh", "bash", "dash", "ash"], Takes::Script),
];

/// The words of the real program; the same words where nothing stands in front.
pub(super) fn unwrap(words: &[String]) -> Vec<String> {
    let mut words = words.to_vec();
    for _ in 0..DEEPEST {
        match peel(&words) {
            Some(inner) if !inner.is_empty() => words = inner,
            _ => break,
        }
    }
    words
}

fn peel(words: &[String]) -> Option<Vec<String>> {
    let (first, rest) = words.split_first()?;
    let name = first.rsplit('/').next()?;
    let (_, takes) = WRAPPERS.iter().find(|(names, _)| names.contains(&name))?;
    match takes {
        Takes::Options(valued, own) => Some(behind(rest, valued, *own).to_vec()),
        Takes::Then(seconds) => {
            let (second, rest) = rest.split_first()?;
            seconds
                .contains(&second.as_str())
                .then(|| behind(rest, &["-p", "--package"], 0).to_vec())
        }
        Takes::Script => match rest {
            [flag, script, ..] if flag == "-c" => simple(script),
            _ => None,
        },
    }
}

/// The words behind options, assignments (`env` takes them) and `own` more words.
fn behind<'a>(words: &'a [String], valued: &[&str], own: usize) -> &'a [String] {
    let mut at = 0;
    while let Some(word) = words.get(at) {
        if word == "--" {
            at += 1;
            break;
        }
        let assigns = word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        });
        if valued.contains(&word.as_str()) {
            at += 2;
        } else if word.starts_with('-') || assigns {
            at += 1;
        } else {
            break;
        }
    }
    words.get(at + own..).unwrap_or_default()
}

/// A script that is one plain command; what a shell would have to work out is left alone.
fn simple(script: &str) -> Option<Vec<String>> {
    if script.contains(|c: char| "|&;<>()$`\\\"'*?[]#~{}\n".contains(c)) {
        return None;
    }
    Some(script.split_ascii_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(line: &str) -> String {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        unwrap(&words).join(" ")
    }

    #[test]
    fn what_stands_in_front_is_taken_off() {
        for (line, inner) in [
            ("node server.js", "node server.js"),
            ("/usr/bin/env -u X A=1 node x", "node x"),
            ("env -S node --flag x", "node --flag x"),
            ("npx --yes -p foo next start", "next start"),
            ("npm exec -- vite", "vite"),
            ("npm start", "npm start"),
            ("bundle exec puma -w 2", "puma -w 2"),
            ("bundle install", "bundle install"),
            ("poetry run gunicorn app", "gunicorn app"),
            (
                "nice -n 5 timeout -k 1 60 tini -s -- python3 -m http.server",
                "python3 -m http.server",
            ),
            ("gosu app:app java -jar x", "java -jar x"),
            ("env", "env"),
        ] {
            assert_eq!(of(line), inner);
        }
        let script = ["sh", "-c", "exec node --flag server.js"].map(str::to_owned);
        assert_eq!(unwrap(&script).join(" "), "node --flag server.js");
        let script = ["sh", "-c", "cd /app && node server.js"].map(str::to_owned);
        assert_eq!(unwrap(&script)[0], "sh");
    }

    proptest! {
        #[test]
        fn no_words_make_it_panic(words in prop::collection::vec("(env|npx|timeout|sh|-c|--|-p|=|A=b|bundle|exec|\\PC{0,5})", 0..12)) {
            prop_assert!(unwrap(&words).len() <= words.len().max(1) || words.iter().any(|w| w.contains(' ')));
        }
    }
}
