//! Whether a command is a Node or Deno server that can be a `cluster` worker: `node` itself, with a script
//! that stays in this process. Pure.

use std::path::Path;

use super::Recognised;
use crate::plan::Runtime;

/// A script that can be a cluster worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    /// Where it stands among the words of the whole command; none inside of a shell's script.
    pub(crate) at: Option<usize>,
    /// Where a debugger is to listen, by the options before it: all but the port, and the port.
    pub(crate) inspect: Option<(String, u16)>,
}

/// Options whose value is a word of its own.
const VALUED: &[&str] = &[
    "-r",
    "--require",
    "--import",
    "--loader",
    "--experimental-loader",
    "-C",
    "--conditions",
    "--title",
    "--input-type",
    "--inspect-port",
    "--debug-port",
    "--env-file",
    "--env-file-if-exists",
    "--icu-data-dir",
    "--openssl-config",
    "--redirect-warnings",
    "--report-dir",
    "--report-directory",
    "--report-filename",
    "--report-signal",
    "--diagnostic-dir",
    "--trace-event-categories",
    "--trace-event-file-pattern",
    "--unhandled-rejections",
    "--dns-result-order",
    "--disable-warning",
    "--localstorage-file",
    "--tls-cipher-list",
    "--tls-keylog",
    "--secure-heap",
    "--secure-heap-min",
    "--heapsnapshot-signal",
    "--max-http-header-size",
    "--stack-trace-limit",
    "--cpu-prof-dir",
    "--heap-prof-dir",
];
/// With these there is no script, or another process runs it.
const NO_SERVER: &[&str] = &[
    "-e",
    "--eval",
    "-p",
    "--print",
    "-pe",
    "-c",
    "--check",
    "-i",
    "--interactive",
    "-v",
    "--version",
    "-h",
    "--help",
    "--run",
    "--test",
    "--watch",
    "--watch-path",
    "--prof-process",
    "--build-snapshot",
    "--experimental-sea-config",
    "--v8-options",
    "--completion-bash",
    "-",
];
/// Scripts that start another process for the server and keep our channel to themselves.
const STARTERS: &[&str] = &[
    "npm",
    "npm-cli",
    "npx",
    "npx-cli",
    "yarn",
    "pnpm",
    "pnpx",
    "corepack",
    "nodemon",
    "pm2",
    "pm2-runtime",
    "ts-node-dev",
    "tsnd",
    "tsx",
    "concurrently",
    "cross-env",
    "cross-env-shell",
    "forever",
    "nx",
    "turbo",
    "lerna",
    "dotenv",
    "env-cmd",
    "npm-run-all",
    "run-s",
    "run-p",
    "wait-on",
    "supervisor",
    "throng",
];
/// Programs in front of `node` that take the channel, or close it.
const TAKERS: &[&str] = &[
    "npx", "npm", "bunx", "bun", "yarn", "pnpm", "corepack", "sudo", "bundle", "poetry", "pipenv",
    "uv", "pdm", "hatch", "rye",
];
/// Options of Deno before its script, with a value behind them.
const DENO_VALUED: &[&str] = &[
    "-c",
    "--config",
    "--import-map",
    "-L",
    "--log-level",
    "--location",
    "--seed",
    "--cert",
    "--ext",
    "--preload",
    "--require",
    "--import",
];

/// The script of a command that was recognised; `words` is the whole command.
pub(crate) fn cluster(words: &[String], found: &Recognised) -> Option<Script> {
    let (program, rest) = found.words.split_first()?;
    let own = &found.words;
    let before = own.len() <= words.len() && words[words.len() - own.len()..] == own[..];
    let before = before.then(|| words.len() - own.len());
    let front = &words[..before.unwrap_or(words.len())];
    let takes = |word: &str| TAKERS.contains(&stem(word));
    let spoken = front.iter().flat_map(|word| word.split_ascii_whitespace());
    if spoken.take_while(|word| word != program).any(takes) {
        return None;
    }
    let at = match (found.runtime, stem(program)) {
        (Runtime::Node, name) if is_node(name) => node(rest)?,
        (Runtime::Deno, "deno") => deno(rest)?,
        _ => return None,
    };
    let inspect = rest[..at].iter().rev().find_map(|word| inspect(word));
    Some(Script { at: before.map(|before| before + 1 + at), inspect })
}

/// Where the options of an environment say that a debugger listens.
pub(crate) fn inspect_option(options: &str) -> Option<(String, u16)> {
    options.split_ascii_whitespace().rev().find_map(inspect)
}

/// The name of a file without its folder and what says that it is a script.
fn stem(word: &str) -> &str {
    let name = word.rsplit('/').next().unwrap_or(word);
    [".js", ".cjs", ".mjs"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// `node`, `nodejs`, `node20`, `node-22.1`.
fn is_node(name: &str) -> bool {
    let rest = name.strip_prefix("nodejs").or_else(|| name.strip_prefix("node"));
    rest.is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || "-.".contains(c)))
}

fn node(words: &[String]) -> Option<usize> {
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let name = word.split('=').next().unwrap_or(word);
        if NO_SERVER.contains(&name) {
            return None;
        }
        if word == "--" {
            at += 1;
            break;
        }
        if !word.starts_with('-') {
            break;
        }
        at += if VALUED.contains(&word.as_str()) { 2 } else { 1 };
    }
    let script = words.get(at)?;
    let owner =
        Path::new(script).components().rev().zip(Path::new(script).components().rev().skip(1));
    // `node_modules/tsx/dist/cli.mjs`: the package is what stands behind the last node_modules.
    let package = owner
        .filter(|(_, parent)| parent.as_os_str() == "node_modules")
        .find_map(|(child, _)| child.as_os_str().to_str());
    let starts = |name: &str| STARTERS.contains(&name);
    let debugs = script == "inspect";
    (!debugs && !starts(stem(script)) && !package.is_some_and(starts)).then_some(at)
}

/// `deno run [OPTIONS] SCRIPT`, `deno [OPTIONS] SCRIPT`; other subcommands run no script or listen by
/// themselves.
fn deno(words: &[String]) -> Option<usize> {
    let mut at = usize::from(words.first().is_some_and(|word| word == "run"));
    let watches = |word: &str| {
        word == "--watch" || word.starts_with("--watch=") || word.starts_with("--watch-")
    };
    while let Some(word) = words.get(at).filter(|word| word.starts_with('-')) {
        if watches(word) || ["-", "-h", "--help", "-V", "--version"].contains(&word.as_str()) {
            return None;
        }
        at += if DENO_VALUED.contains(&word.as_str()) { 2 } else { 1 };
    }
    let script = words.get(at)?;
    let is_file = [".js", ".ts", ".mjs", ".mts", ".cjs", ".cts", ".jsx", ".tsx"];
    is_file.iter().any(|end| script.ends_with(end)).then_some(at)
}

/// `--inspect`, `--inspect=9230`, `--inspect-brk=0.0.0.0:9230`: what stands before the port, and the port.
fn inspect(word: &str) -> Option<(String, u16)> {
    let (name, value) = word.split_once('=').unwrap_or((word, ""));
    if !["--inspect", "--inspect-brk", "--inspect-wait", "--inspect-port", "--debug-port"]
        .contains(&name)
    {
        return None;
    }
    let (host, port) = match value.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (format!("{host}:"), port),
        _ if value.parse::<u16>().is_ok() => (String::new(), value),
        _ if value.is_empty() => (String::new(), ""),
        _ => (format!("{value}:"), ""),
    };
    let port = if port.is_empty() { 9229 } else { port.parse().ok()? };
    // Of port 0 everybody gets one of his own.
    (port != 0).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::super::wrappers;
    use super::*;

    fn of(line: &[&str], runtime: Runtime) -> Option<Script> {
        let words: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
        let own = wrappers::unwrap(&words);
        cluster(&words, &Recognised { runtime, because: String::new(), words: own })
    }

    fn at(line: &str) -> Option<usize> {
        let runtime = if line.contains("deno") { Runtime::Deno } else { Runtime::Node };
        of(&line.split(' ').collect::<Vec<_>>(), runtime).map(|script| script.at.unwrap())
    }

    #[test]
    fn servers() {
        for (line, script) in [
            ("node server.js", 1),
            ("/usr/local/bin/node --enable-source-maps -r dotenv/config dist/main.js --port 3", 4),
            ("nodejs --import=./x.mjs server.mjs -e", 2),
            ("node22 -- server.js", 2),
            ("env A=1 node server.js", 3),
            ("tini -- node .", 3),
            ("timeout 60 node node_modules/next/dist/bin/next start", 3),
            ("deno run -A --config deno.json main.ts", 5),
            ("deno server.mjs", 1),
        ] {
            assert_eq!(at(line), Some(script), "{line}");
        }
        let script = ["sh", "-c", "exec node --inspect server.js"];
        let found = of(&script, Runtime::Node).unwrap();
        assert_eq!((found.at, found.inspect), (None, Some((String::new(), 9229))));
    }

    #[test]
    fn what_would_eat_the_channel_or_is_no_server() {
        for line in [
            "node",
            "node -e 1",
            "node --watch server.js",
            "node --run start",
            "node --test",
            "node -",
            "node inspect server.js",
            "node /usr/lib/node_modules/npm/bin/npm-cli.js start",
            "node node_modules/.bin/nodemon server.js",
            "node node_modules/tsx/dist/cli.mjs server.ts",
            "npm start",
            "npx node server.js",
            "npm exec -- node server.js",
            "sudo node server.js",
            "next start",
            "./server.js",
            "node --check server.js",
            "deno serve main.ts",
            "deno task start",
            "deno run --watch main.ts",
            "deno repl",
        ] {
            assert_eq!(at(line), None, "{line}");
        }
        assert_eq!(of(&["sh", "-c", "node migrate.js && node server.js"], Runtime::Node), None);
        assert_eq!(of(&["sh", "-c", "npx node server.js"], Runtime::Node), None);
        assert_eq!(of(&["bun", "server.js"], Runtime::Bun), None);
    }

    #[test]
    fn debuggers() {
        let port = |word: &str| inspect(word).map(|(host, port)| format!("{host}{port}"));
        assert_eq!(port("--inspect").as_deref(), Some("9229"));
        assert_eq!(port("--inspect-brk=9300").as_deref(), Some("9300"));
        assert_eq!(port("--inspect=0.0.0.0:9230").as_deref(), Some("0.0.0.0:9230"));
        assert_eq!(port("--inspect=[::1]:9230").as_deref(), Some("[::1]:9230"));
        assert_eq!(port("--inspect=localhost").as_deref(), Some("localhost:9229"));
        assert_eq!(port("--inspect=0"), None);
        assert_eq!(port("--inspect-publish-uid=http"), None);
        assert_eq!(inspect_option("--max-old-space-size=9 --inspect").unwrap().1, 9229);
    }
}
