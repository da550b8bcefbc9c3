//! `--env-file`: variables for the workers, from a file.

use std::path::Path;

use crate::exit::{Failure, usage};

/// The `NAME=value` lines of a file: blank lines and `#` comments are left out, one pair of quotes
/// around a value is taken off, nothing is expanded.
pub(crate) fn read_env_file(path: &Path) -> Result<Vec<(String, String)>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| usage(format!("cannot read --env-file {}: {error}", path.display())))?;
    parse(&text, path)
}

/// The same of a text; `path` is for a complaint.
pub(super) fn parse(text: &str, path: &Path) -> Result<Vec<(String, String)>, Failure> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let pair = line.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
        let Some((name, value)) =
            pair.filter(|(name, value)| is_name(name) && !value.contains('\0'))
        else {
            let (path, number) = (path.display(), number + 1);
            return Err(usage(format!(
                "bad line \"{line}\" in {path}, line {number}: expected NAME=value"
            )));
        };
        let unquoted =
            ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        found.push((name.to_owned(), unquoted.unwrap_or(value).to_owned()));
    }
    Ok(found)
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read_env_file(file.path())
    }

    #[test]
    fn lines_comments_and_quotes() {
        let text =
            "# a comment\n\nA=1\nexport B = two words \nC=\"quoted # text\"\nD='x'\nE=\nF=a=b\r\n";
        let pairs = read(text).unwrap();
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(pairs, ["A=1", "B=two words", "C=quoted # text", "D=x", "E=", "F=a=b"]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = read("A=1\nno equals sign\n").unwrap_err().to_string();
        assert!(error.contains("\"no equals sign\"") && error.contains("line 2"), "{error}");
        assert!(read("=x").is_err());
    }
}
