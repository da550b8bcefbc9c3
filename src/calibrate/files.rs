//! The files of a calibration: both written, or both as they were.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file beside the one that it is to become; gone with this unless it has.
struct New {
    path: PathBuf,
    target: PathBuf,
}

impl New {
    fn beside(target: &Path, text: &str) -> io::Result<Self> {
        if target.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        let mut name = target.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.new", std::process::id()));
        let path = target.with_file_name(name);
        // Of one that had our number and was killed.
        let _ = fs::remove_file(&path);
        let mut file = File::options().write(true).create_new(true).mode(0o644).open(&path)?;
        let new = Self { path, target: target.to_owned() };
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        Ok(new)
    }
}

impl Drop for New {
    fn drop(&mut self) {
        // It has been renamed, most likely.
        let _ = fs::remove_file(&self.path);
    }
}

/// Replaces each file by its text, when all of them are on the disk; the error names the file.
pub(crate) fn replace(files: &[(&Path, &str)]) -> Result<(), String> {
    let mut all = Vec::new();
    for (target, text) in files {
        all.push(New::beside(target, text).map_err(|error| told(target, &error))?);
    }
    for new in all {
        fs::rename(&new.path, &new.target).map_err(|error| told(&new.target, &error))?;
    }
    Ok(())
}

/// Whether these can be written, as far as that is known before there is anything to write.
pub(crate) fn try_out(files: &[&Path]) -> Result<(), String> {
    for target in files {
        New::beside(target, "\n").map_err(|error| told(target, &error))?;
    }
    Ok(())
}

fn told(path: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}; what was there is as it was", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_whole_and_together() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        let text = |path: &Path| fs::read_to_string(path).unwrap();
        replace(&[(&one, "old"), (&other, "old")]).unwrap();
        replace(&[(&one, "new"), (&other, "new")]).unwrap();
        assert_eq!((text(&one), text(&other)), ("new".to_owned(), "new".to_owned()));
        for wrong in [Path::new("/nowhere/at/all"), dir.path()] {
            let why = replace(&[(&one, "newer"), (wrong, "newer")]).unwrap_err();
            assert!(why.contains(&format!("cannot write {}: ", wrong.display())), "{why}");
            assert_eq!(text(&one), "new");
            assert!(try_out(&[&one, wrong]).is_err());
        }
        try_out(&[&one, &dir.path().join("third")]).unwrap();
        assert_eq!(text(&one), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
