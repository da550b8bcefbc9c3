//! Servers that fork workers by themselves: N workers of such a server would be N times as many
//! processes as fit. A table; the words of the command and the server's own configuration decide.

use std::path::Path;

use super::text;

/// A server that was found to fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fork {
    /// What says so: `gunicorn -w 4`, `nginx`.
    pub(crate) says: String,
    /// How many it forks, where that is a number.
    pub(crate) count: Option<u32>,
    /// What to do, to be read after "either".
    instead: &'static str,
}

impl Fork {
    /// The warning for so many workers of it; `None` where there is only one.
    pub(crate) fn warning(&self, workers: u32) -> Option<String> {
        if workers < 2 {
            return None;
        }
        let says = &self.says;
        let times = match self.count {
            Some(count) => format!("{workers} × {count} processes"),
            None => format!("{workers} times its own number of processes"),
        };
        let instead = self.instead;
        Some(format!("{says} forks workers by itself, so this would be {times}: {instead}"))
    }
}

const WEB_CONCURRENCY: &str =
    "leave that out, as each worker is told WEB_CONCURRENCY=1, or run it once with --exec";
const ONE: &str = "set it to 1, or run it once with --exec";
const ONCE: &str = "run it once, with --exec or --workers 1";

/// When a server forks.
enum When {
    /// One of these options has a number above 1.
    Option(&'static [&'static str], &'static str),
    /// Always.
    Always,
    /// Always, but where an option has one of these values.
    Unless(&'static str, &'static [&'static str]),
}

const SERVERS: &[(&[&str], When)] = &[
    (&["gunicorn"], When::Option(&["-w", "--workers"], WEB_CONCURRENCY)),
    (&["uvicorn"], When::Option(&["--workers"], WEB_CONCURRENCY)),
    (&["puma"], When::Option(&["-w", "--workers"], WEB_CONCURRENCY)),
    (&["hypercorn"], When::Option(&["-w", "--workers"], ONE)),
    (&["granian"], When::Option(&["--workers"], ONE)),
    (&["uwsgi"], When::Option(&["-p", "--processes", "--workers"], ONE)),
    (&["pm2", "pm2-runtime"], When::Option(&["-i", "--instances"], ONE)),
    (&["celery"], When::Unless("-P", &["solo", "threads", "gevent", "eventlet"])),
    (
        &["unicorn", "sidekiqswarm", "php-fpm", "nginx", "apache2", "httpd", "throng-rs"],
        When::Always,
    ),
];

/// Whether the command forks; `get` reads its environment, `dir` is where it starts.
pub(crate) fn forks(
    words: &[String],
    get: &dyn Fn(&str) -> Option<String>,
    dir: &Path,
) -> Option<Fork> {
    let (name, rest) = program(words)?;
    let name = name.as_str();
    if name == "node" || name == "nodejs" {
        return cluster(rest, dir);
    }
    let known = |known: &&str| {
        name.strip_prefix(*known).is_some_and(|version| {
            version.chars().all(|c| c.is_ascii_digit() || c == '.' || c == '-')
        })
    };
    let (_, when) = SERVERS.iter().find(|(names, _)| names.iter().any(known))?;
    match when {
        When::Always => Some(Fork { says: name.to_owned(), count: None, instead: ONCE }),
        When::Unless(option, values) => {
            if !rest.iter().any(|word| word == "worker") {
                return None;
            }
            let alone = value(rest, option).is_some_and(|value| values.contains(&value.as_str()))
                || value(rest, "--pool").is_some_and(|value| values.contains(&value.as_str()));
            let count = ["-c", "--concurrency"].iter().find_map(|option| value(rest, option));
            let count = count.and_then(|count| count.parse().ok());
            (!alone && count != Some(1)).then(|| Fork {
                says: "celery worker".to_owned(),
                count,
                instead: "add -c 1, or run it once with --exec",
            })
        }
        When::Option(options, instead) => {
            by_option(name, rest, options, instead, get).or_else(|| by_file(name, dir, get))
        }
    }
}

/// The server's name and its words: `python -m gunicorn -w 4` is gunicorn.
fn program(words: &[String]) -> Option<(String, &[String])> {
    let (first, rest) = words.split_first()?;
    let name = first.rsplit('/').next()?;
    let python = name.starts_with("python");
    match rest {
        [flag, module, rest @ ..] if python && flag == "-m" => Some((module.clone(), rest)),
        // `ruby bin/puma -w 4`, `python /app/bin/gunicorn`.
        [script, rest @ ..] if (python || name == "ruby") && !script.starts_with('-') => {
            Some((script.rsplit('/').next()?.to_owned(), rest))
        }
        _ => Some((name.to_owned(), rest)),
    }
}

fn by_option(
    name: &str,
    words: &[String],
    options: &[&str],
    instead: &'static str,
    get: &dyn Fn(&str) -> Option<String>,
) -> Option<Fork> {
    let extra = if name == "gunicorn" { get("GUNICORN_CMD_ARGS") } else { None };
    let extra: Vec<String> =
        extra.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect();
    // The command line beats the variable.
    let found =
        |words: &[String]| options.iter().find_map(|option| Some((*option, value(words, option)?)));
    let (option, text) = found(words).or_else(|| found(&extra))?;
    let count = text.parse().ok();
    // `puma -w 0` forks none, `-w 1` one; `pm2 -i max` is no number and forks many.
    let forks = count.is_none_or(|count: u32| count > 1);
    forks.then(|| Fork { says: format!("{name} {option} {text}"), count, instead })
}

/// The value of an option: `-w 4`, `-w4`, `--workers 4`, `--workers=4`.
fn value(words: &[String], option: &str) -> Option<String> {
    let at = words.iter().position(|word| word.starts_with(option))?;
    let rest = &words[at][option.len()..];
    if rest.is_empty() {
        return words.get(at + 1).cloned();
    }
    if let Some(value) = rest.strip_prefix('=') {
        return Some(value.to_owned());
    }
    let short = !option.starts_with("--");
    (short && rest.starts_with(|c: char| c.is_ascii_digit())).then(|| rest.to_owned())
}

/// The configuration that a server reads by itself, where that names a number of workers.
fn by_file(name: &str, dir: &Path, get: &dyn Fn(&str) -> Option<String>) -> Option<Fork> {
    let file = match name {
        "gunicorn" => "gunicorn.conf.py",
        "puma" => "config/puma.rb",
        _ => return None,
    };
    let content = text(&dir.join(file));
    let line = content.lines().map(str::trim).find(|line| {
        let rest = line.strip_prefix("workers").map(str::trim_start);
        rest.is_some_and(|rest| {
            rest.starts_with(['=', ' '])
                || rest.starts_with(|c: char| c.is_ascii_digit() || "EC(".contains(c))
        })
    })?;
    // Those that read the variable find our 1 there.
    if line.contains("WEB_CONCURRENCY") && get("WEB_CONCURRENCY").is_none_or(|set| !set.is_empty())
    {
        return None;
    }
    let digits: String = line.chars().filter(char::is_ascii_digit).collect();
    let plain = line.trim_start_matches("workers").trim_start_matches([' ', '=', '(']);
    let count =
        if plain.starts_with(|c: char| c.is_ascii_digit()) { digits.parse().ok() } else { None };
    let forks = count.is_none_or(|count: u32| count > 1);
    forks.then(|| Fork { says: format!("{name} by {file} (\"{line}\")"), count, instead: ONE })
}

/// A Node.js script that is a cluster's primary by itself.
fn cluster(words: &[String], dir: &Path) -> Option<Fork> {
    let script = words.iter().find(|word| !word.starts_with('-'))?;
    let content = text(&dir.join(script));
    let signs = [
        "cluster.fork(",
        "require('throng')",
        "require(\"throng\")",
        "from 'throng'",
        "from \"throng\"",
    ];
    let sign = signs.iter().find(|sign| content.contains(**sign))?;
    let reads = content.contains("WEB_CONCURRENCY") || sign.contains("throng");
    // Where it reads the variable it finds our 1, and forks one: twice the processes all the same.
    let count = reads.then_some(2);
    Some(Fork { says: format!("{script} ({sign})"), count, instead: ONCE })
}

/// `npm start` and its like, which stay in front of what they run.
pub(crate) fn runner(words: &[String], dir: &Path) -> Option<String> {
    let (name, rest) = program(words)?;
    let script = match (name.as_str(), rest) {
        ("npm" | "yarn" | "pnpm", [start, ..]) if start == "start" => "start",
        ("npm" | "yarn" | "pnpm", [run, script, ..]) if run == "run" || run == "run-script" => {
            script
        }
        _ => return None,
    };
    let package: serde_json::Value =
        serde_json::from_str(&text(&dir.join("package.json"))).unwrap_or_default();
    let runs = package["scripts"][script].as_str();
    let better = runs
        .map_or_else(|| "run what it runs".to_owned(), |runs| format!("run what it runs: {runs}"));
    Some(format!(
        "{name} stays in front of each worker, with a process and some 50 MB of its own, and does not pass every signal on; {better}"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(line: &str, dir: &Path) -> Option<Fork> {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let get = |name: &str| (name == "GUNICORN_CMD_ARGS").then(|| "--workers=3".to_owned());
        forks(&words, &get, dir)
    }

    #[test]
    fn servers_that_fork_are_found_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let count = |line: &str| of(line, dir.path()).map(|fork| fork.count);
        assert_eq!(count("gunicorn -w 4 app"), Some(Some(4)));
        assert_eq!(count("python3 -m gunicorn --workers=5 app"), Some(Some(5)));
        assert_eq!(count("gunicorn app"), Some(Some(3)), "by its variable");
        assert_eq!(count("gunicorn -w1 app"), None);
        assert_eq!(count("ruby bin/puma -w 2"), Some(Some(2)));
        assert_eq!(count("puma -w 0"), None);
        assert_eq!(count("puma -t 5:5"), None);
        assert_eq!(count("uvicorn app:app --workers 8"), Some(Some(8)));
        assert_eq!(count("pm2-runtime -i max app.js"), Some(None));
        assert_eq!(count("celery -A app worker"), Some(None));
        assert_eq!(count("celery -A app worker -c 1"), None);
        assert_eq!(count("celery -A app worker -P solo"), None);
        assert_eq!(count("celery -A app beat"), None);
        assert_eq!(count("php-fpm8.2 -F"), Some(None));
        assert_eq!(count("nginx"), Some(None));
        assert_eq!(count("node server.js"), None);
        assert_eq!(count("./server -w 4"), None);
    }

    #[test]
    fn configuration_files_and_scripts_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        std::fs::create_dir(dir.path().join("config")).unwrap();
        let count = |line: &str| of(line, dir.path()).map(|fork| fork.count);
        put("config/puma.rb", "threads 5, 5\nworkers 3\n");
        assert_eq!(count("puma"), Some(Some(3)));
        put("config/puma.rb", "workers ENV.fetch(\"WEB_CONCURRENCY\") { 2 }\n");
        assert_eq!(count("puma"), None);
        put("config/puma.rb", "workers Concurrent.physical_processor_count\n");
        assert_eq!(count("puma"), Some(None));
        put("server.js", "const c = require('cluster'); c.fork; cluster.fork();");
        assert_eq!(count("node --flag server.js"), Some(None));
        put("package.json", "{\"scripts\":{\"start\":\"node server.js\"}}");
        let words = ["npm", "start"].map(str::to_owned);
        assert!(runner(&words, dir.path()).unwrap().ends_with("run what it runs: node server.js"));
        assert_eq!(runner(&["node".to_owned()], dir.path()), None);
    }

    #[test]
    fn one_worker_is_no_product() {
        let fork = of("gunicorn -w 4 app", Path::new("/")).unwrap();
        assert_eq!(fork.warning(1), None);
        let text = fork.warning(2).unwrap();
        assert!(text.contains("2 × 4 processes") && text.contains("--exec"), "{text}");
    }

    proptest! {
        #[test]
        fn no_words_make_it_panic(words in prop::collection::vec("(gunicorn|puma|-w|--workers=|python3|-m|celery|worker|node|\\PC{0,5})", 0..8)) {
            let _ = (forks(&words, &|_| None, Path::new("/nonexistent")), runner(&words, Path::new("/nonexistent")));
        }
    }
}
