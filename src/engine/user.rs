//! `--user`: names from `/etc/passwd` and `/etc/group` read by ourselves, because a static glibc has
//! no reliable name service and a scratch image has none at all. Formats: `passwd(5)`, `group(5)`.

use std::fs;

use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

/// Who the workers run as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    /// The supplementary groups.
    pub(crate) groups: Vec<Gid>,
}

impl User {
    /// Makes this process that user. Somebody who is not root may name himself, and cannot change groups.
    pub(super) fn take_on(&self) -> nix::Result<()> {
        if nix::unistd::geteuid().is_root() {
            setgroups(&self.groups)?;
        }
        setgid(self.gid)?;
        setuid(self.uid)
    }

    /// Reads `USER[:GROUP]`, each a name or a number. The error says what was not found.
    pub(crate) fn find(text: &str) -> Result<Self, String> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let group = fs::read_to_string("/etc/group").unwrap_or_default();
        Self::parse(text, &passwd, &group)
    }

    fn parse(text: &str, passwd: &str, group: &str) -> Result<Self, String> {
        let (user, wanted) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let entry = passwd.lines().map(fields).find(|entry| {
            entry.len() > 3 && (entry[0] == user || (is_number(user) && entry[2] == user))
        });
        let uid = match &entry {
            Some(entry) => number(entry[2]),
            None => number(user),
        };
        let uid = uid
            .ok_or_else(|| format!("no user \"{user}\" in /etc/passwd; give its name or number"))?;
        let gid = match wanted {
            Some(wanted) => group_id(wanted, group).ok_or_else(|| {
                format!("no group \"{wanted}\" in /etc/group; give its name or number")
            })?,
            None => entry.as_ref().and_then(|entry| number(entry[3])).unwrap_or(uid),
        };
        let name = entry.as_ref().map_or(user, |entry| entry[0]);
        // A group that was named stands alone, as with Docker's USER.
        let others = group.lines().map(fields).filter(|entry| {
            wanted.is_none() && entry.len() > 3 && entry[3].split(',').any(|member| member == name)
        });
        let mut groups: Vec<Gid> = vec![Gid::from_raw(gid)];
        groups.extend(others.filter_map(|entry| number(entry[2])).map(Gid::from_raw));
        groups.sort_unstable_by_key(|gid| gid.as_raw());
        groups.dedup();
        Ok(Self { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid), groups })
    }
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

fn group_id(wanted: &str, group: &str) -> Option<u32> {
    let entry = group.lines().map(fields).find(|entry| entry.len() > 2 && entry[0] == wanted);
    entry.map_or_else(|| number(wanted), |entry| number(entry[2]))
}

fn is_number(text: &str) -> bool {
    number(text).is_some()
}

/// `u32::MAX` is the kernel's "leave unchanged" and nobody's id.
fn number(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:app,other\nlog:x:4:app\nbad:x\n";

    fn ids(text: &str) -> Option<(u32, u32, Vec<u32>)> {
        let user = User::parse(text, PASSWD, GROUP).ok()?;
        Some((
            user.uid.as_raw(),
            user.gid.as_raw(),
            user.groups.iter().map(|gid| gid.as_raw()).collect(),
        ))
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(ids("app"), Some((1000, 1001, vec![4, 33, 1001])));
        assert_eq!(ids("1000"), Some((1000, 1001, vec![4, 33, 1001])));
        assert_eq!(ids("app:www"), Some((1000, 33, vec![33])));
        assert_eq!(ids("7:8"), Some((7, 8, vec![8])));
        assert_eq!(ids("7"), Some((7, 7, vec![7])));
        for bad in ["nobody-here", "app:nowhere", "", "4294967295", "-1"] {
            assert_eq!(ids(bad), None, "{bad}");
        }
    }
}
