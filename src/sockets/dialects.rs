//! How inherited sockets are announced. There are three customs; a worker is told in all at once.
//!
//! - systemd: `sd_listen_fds(3)`; `LISTEN_PID` must be the worker's own pid, so spawn fills it in.
//! - einhorn: `EINHORN_FD_COUNT` and `EINHORN_FD_0`…
//! - `Server::Starter`: `SERVER_STARTER_PORT`, `KEY=FD` joined by semicolons.

use super::listen::Address;

/// `SD_LISTEN_FDS_START`.
pub(crate) const FIRST_FD: i32 = 3;

/// The variables for `sockets`, each with its name, which a worker inherits from [`FIRST_FD`] on.
pub(crate) fn variables(sockets: &[(Address, String)]) -> Vec<(String, String)> {
    if sockets.is_empty() {
        return Vec::new();
    }
    let count = sockets.len().to_string();
    let numbered: Vec<_> = (FIRST_FD..).zip(sockets.iter().map(|(address, _)| address)).collect();
    let names: Vec<_> = sockets.iter().map(|(_, name)| name.as_str()).collect();
    let keys: Vec<_> =
        numbered.iter().map(|(fd, address)| format!("{}={fd}", starter_key(address))).collect();
    let mut found = vec![
        ("LISTEN_FDS".to_owned(), count.clone()),
        ("LISTEN_FDNAMES".to_owned(), names.join(":")),
        ("EINHORN_FD_COUNT".to_owned(), count),
        ("SERVER_STARTER_PORT".to_owned(), keys.join(";")),
    ];
    found.extend(
        numbered
            .iter()
            .enumerate()
            .map(|(index, (fd, _))| (format!("EINHORN_FD_{index}"), fd.to_string())),
    );
    found
}

fn starter_key(address: &Address) -> String {
    match address {
        Address::Port(port) => port.to_string(),
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_custom_is_served() {
        let sockets: Vec<_> = ["127.0.0.1:80", "unix:/a:b"]
            .iter()
            .map(|text| Address::parse(text).unwrap())
            .map(|address| (address.clone(), address.name()))
            .collect();
        let found = variables(&sockets);
        let value =
            |name: &str| found.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        assert_eq!(value("LISTEN_FDS"), Some("2"));
        assert_eq!(value("LISTEN_FDNAMES"), Some("80:/a_b"));
        assert_eq!(value("EINHORN_FD_1"), Some("4"));
        assert_eq!(value("SERVER_STARTER_PORT"), Some("127.0.0.1:80=3;/a:b=4"));
    }
}
