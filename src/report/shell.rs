//! The plan as lines for `eval` in a POSIX shell.

use std::collections::BTreeMap;

/// `export NAME='value'` lines.
pub(crate) fn render(environment: &BTreeMap<String, String>) -> String {
    let lines: Vec<_> = environment
        .iter()
        .map(|(name, value)| format!("export {name}={}", quoted(value)))
        .chain([String::new()])
        .collect();
    lines.join("\n")
}

/// Safe in every POSIX shell, bare where that is safe too.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+:,./@%".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_change_is_quoted() {
        assert_eq!(quoted("--max-old-space-size=80"), "--max-old-space-size=80");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's $(x)"), r"'it'\''s $(x)'");
        assert_eq!(quoted(""), "''");
    }
}
