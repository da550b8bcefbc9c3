//! Amazon ECS and Fargate: a task's limits may be invisible in the container's cgroup; the task
//! metadata endpoint, version 4, tells them. Asked only where that endpoint is named and no cgroup
//! limits the memory. Form: "Amazon ECS task metadata endpoint version 4" in the ECS developer guide.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use super::Evidence;
use super::host::Host;
use crate::units::{Fraction, MIB};

const VARIABLE: &str = "ECS_CONTAINER_METADATA_URI_V4";
/// For both questions together: it is on the same host, and a start must not wait for it.
const PATIENCE: Duration = Duration::from_millis(250);
/// The answer lists the task's containers; none is anywhere near this.
const LONGEST: u64 = 256 << 10;

/// Adds the limits of the task and of the container.
pub(crate) fn overlay(host: &Host, evidence: &mut Evidence) {
    let Some(uri) = host.env(VARIABLE) else { return };
    let ram = evidence.machine.memory.as_ref().map_or(u64::MAX, |ram| ram.value);
    let limits = || evidence.memory.iter().filter_map(|level| level.limit.as_ref());
    if limits().any(|limit| limit.value < ram) {
        return;
    }
    let text = uri.to_str().map(|uri| uri.trim().trim_end_matches('/'));
    let Some((uri, place)) = text.and_then(|uri| Some((uri, here(uri)?))) else {
        let shown = super::host::show(uri.as_encoded_bytes());
        evidence.warnings.push(format!(
            "{VARIABLE} is \"{shown}\", which is no http address on this host (loopback or link-local), and is ignored"
        ));
        return;
    };
    let end = Instant::now() + PATIENCE;
    let task = format!("{uri}/task");
    for (url, whole_task) in [(task.as_str(), true), (uri, false)] {
        match ask(url, place, end.saturating_duration_since(Instant::now())) {
            Ok(answer) => evidence.add_ecs(&answer, url, whole_task),
            Err(error) => {
                evidence
                    .warnings
                    .push(format!("{url} could not be asked for limits ({error}) and is left out"));
                // What does not answer once will not answer twice.
                return;
            }
        }
    }
}

/// Where the endpoint is, which is 169.254.170.2 on ECS. A variable must not make a launcher speak to
/// the wide world, so names and every address elsewhere are refused.
fn here(uri: &str) -> Option<SocketAddr> {
    let uri: Uri = uri.parse().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let address: IpAddr = host.parse().ok()?;
    let near = match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    };
    let plain = uri.scheme_str() == Some("http");
    (plain && near).then(|| SocketAddr::new(address, uri.port_u16().unwrap_or(80)))
}

/// Nothing to resolve: the library's own resolver starts a thread for it, and we fork.
#[derive(Debug)]
struct Known(SocketAddr);

impl Resolver for Known {
    fn resolve(
        &self,
        _: &Uri,
        _: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut found = self.empty();
        found.push(self.0);
        Ok(found)
    }
}

fn ask(url: &str, place: SocketAddr, patience: Duration) -> Result<Value, String> {
    if patience.is_zero() {
        return Err("no time is left".to_owned());
    }
    let config = Agent::config_builder()
        .timeout_global(Some(patience))
        // Link-local: a proxy of the environment is for other places.
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(true)
        .build();
    let agent = Agent::with_parts(config, DefaultConnector::default(), Known(place));
    let mut answer = agent.get(url).call().map_err(|e| e.to_string())?;
    let body = answer.body_mut().with_config().limit(LONGEST).read_to_vec();
    serde_json::from_slice(&body.map_err(|e| e.to_string())?).map_err(|e| e.to_string())
}

impl Evidence {
    /// `Limits.Memory` is in MiB; `Limits.CPU` of a task in CPUs, of a container in shares, which are no
    /// limit.
    fn add_ecs(&mut self, answer: &Value, url: &str, whole_task: bool) {
        let limits = &answer["Limits"];
        let memory = &limits["Memory"];
        match memory.as_u64().filter(|mib| *mib > 0).and_then(|mib| mib.checked_mul(MIB)) {
            Some(bytes) => self.add_limit(bytes, url, url.to_owned()),
            None if memory.is_null() || *memory == 0 => {}
            None => self.no_ecs_limit(url, "Memory", memory),
        }
        if !whole_task {
            return;
        }
        let cpu = &limits["CPU"];
        match cpu.as_f64().and_then(Fraction::from_f64) {
            Some(cpus) => self.add_quota(cpus, url.to_owned()),
            None if cpu.is_null() || cpu.as_f64() == Some(0.0) => {}
            None => self.no_ecs_limit(url, "CPU", cpu),
        }
    }

    fn no_ecs_limit(&mut self, url: &str, name: &str, value: &Value) {
        let shown = super::host::show(value.to_string().as_bytes());
        self.warnings.push(format!(
            "{url} gives {shown} as Limits.{name}, which is no limit, and is ignored"
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::path::Path;
    use std::thread;

    use super::*;
    use crate::probe::Resources;

    /// Plays the endpoint: answers each request by its path, at most so many.
    fn endpoint(most: usize, answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("http://{}/v4/abc", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming().take(most) {
                let mut stream = stream.unwrap();
                let mut request = [0; 2048];
                let length = stream.read(&mut request).unwrap_or(0);
                let text = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default();
                // A client that has gone is what some of the tests are about.
                let _ = stream.write_all(&answer(path));
            }
        });
        uri
    }

    fn json(body: &str) -> Vec<u8> {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
        format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    fn resources(uri: &str) -> Resources {
        let machine = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hosts/v1-fargate");
        let env = [
            (VARIABLE, uri),
            ("http_proxy", "http://127.0.0.1:1"),
            ("HTTP_PROXY", "http://127.0.0.1:1"),
        ];
        Resources::of(&Host::sysroot(&machine).unwrap().with_env(env))
    }

    #[test]
    fn a_task_that_the_cgroup_does_not_show_is_asked_for() {
        let uri = endpoint(2, |path| {
            json(if path.ends_with("/task") {
                r#"{"Limits":{"CPU":0.25,"Memory":512},"Containers":[]}"#
            } else {
                r#"{"Limits":{"CPU":10,"Memory":128}}"#
            })
        });
        let found = resources(&uri);
        assert_eq!(found.warnings, Vec::<String>::new());
        let limit = found.memory.limit.unwrap();
        assert_eq!((limit.value, limit.source), (128 * MIB, uri.clone()), "the container's own");
        let quota = found.cpu.quota.unwrap();
        assert!((quota.value.as_f64() - 0.25).abs() < 1e-9, "shares are no CPUs");
        assert_eq!(quota.source, format!("{uri}/task"));
    }

    #[test]
    fn what_cannot_be_believed_is_no_limit_and_one_warning() {
        let redirect =
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
        let endless =
            [b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n".to_vec(), vec![b' '; 1 << 20]]
                .concat();
        for answer in [
            b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_vec(),
            redirect.to_vec(),
            endless,
            b"garbage".to_vec(),
            json("no json"),
        ] {
            let uri = endpoint(1, move |_| answer.clone());
            let found = resources(&uri);
            assert!(found.memory.limit.is_none() && found.cpu.quota.is_none());
            assert_eq!(found.warnings.len(), 1, "{:?}", found.warnings);
            assert!(found.warnings[0].contains(&uri), "{:?}", found.warnings);
        }
        for limits in [
            r#"{"CPU":-1,"Memory":-512}"#,
            r#"{"CPU":"x","Memory":1e99}"#,
            r#"{"CPU":1e99,"Memory":[]}"#,
        ] {
            let body = format!("{{\"Limits\":{limits}}}");
            let uri = endpoint(2, move |_| json(&body));
            let found = resources(&uri);
            assert!(found.memory.limit.is_none() && found.cpu.quota.is_none());
            assert_eq!(found.warnings.len(), 3, "{:?}", found.warnings);
        }
        for elsewhere in [
            "https://169.254.170.2/v4",
            "http://localhost/v4",
            "http://192.0.2.1/v4",
            "http://[2001:db8::1]/v4",
            "http://127.0.0.1@192.0.2.1/v4",
            "127.0.0.1/v4",
            "http://",
        ] {
            let nobody = resources(elsewhere);
            assert!(nobody.warnings[0].contains("no http address"), "{:?}", nobody.warnings);
        }
    }

    #[test]
    fn who_does_not_answer_costs_a_quarter_of_a_second() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("http://{}/v4", silent.local_addr().unwrap());
        let found = resources(&uri);
        assert_eq!(found.warnings.len(), 1);
        assert!(found.memory.limit.is_none());
    }
}
