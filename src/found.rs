//! Files that are looked for without being asked for: taken only where they cannot be somebody else's doing.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

/// What lies at a path.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    /// It belongs to somebody else, or others may write it.
    Foreign,
    File(File),
}

impl Found {
    /// Opens `path`. What was `asked` for by name has to be there, and is taken whatever it is.
    pub(crate) fn at(path: &Path, asked: bool) -> io::Result<Self> {
        // Opened once, so that what is judged is what is read; not blocking, in case it is a pipe.
        let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = match opened {
            Err(_) if !asked => return Ok(Self::Nothing),
            opened => opened?,
        };
        if asked {
            return Ok(Self::File(file));
        }
        let info = file.metadata()?;
        let ours = info.uid() == 0 || info.uid() == nix::unistd::geteuid().as_raw();
        Ok(match info.is_file() {
            false => Self::Nothing,
            true if !ours || info.mode() & 0o022 != 0 => Self::Foreign,
            true => Self::File(file),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_others_may_write_is_taken_only_where_it_was_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(matches!(Found::at(&path, false), Ok(Found::Nothing)));
        assert!(Found::at(&path, true).is_err());
        File::create(&path).unwrap();
        for (mode, taken) in [(0o644, true), (0o664, false), (0o646, false)] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(matches!(Found::at(&path, false), Ok(Found::File(_))), taken, "{mode:o}");
            assert!(matches!(Found::at(&path, true), Ok(Found::File(_))), "{mode:o}");
        }
        assert!(matches!(Found::at(dir.path(), false), Ok(Found::Nothing)), "a folder is no file");
    }
}
