//! The client: finds the instance that is meant and asks it.

use std::fmt::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use serde_json::Value;

use super::place::sockets;
use super::wire::Status;
use crate::http;

/// Which instance is meant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selector {
    pub(crate) control: Option<PathBuf>,
    pub(crate) name: Option<String>,
}

/// One launcher that answers.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) path: PathBuf,
}

/// Why no instance was found.
#[derive(Debug)]
pub(crate) enum NotOne {
    None(String),
    /// With the list of them.
    Several(String),
}

/// An answer that has come whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body where all is well, else what the other side says is wrong.
    pub(crate) fn sound(self) -> Result<Self, String> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let error = self.json()["error"].as_str().map(str::to_owned);
        Err(error.unwrap_or_else(|| format!("the launcher answers with status {}", self.status)))
    }
}

impl Instance {
    /// The only one of this user, or the one that is named.
    pub(crate) async fn find(selector: &Selector) -> Result<Self, NotOne> {
        if let Some(path) = &selector.control {
            UnixStream::connect(path).map_err(|error| {
                NotOne::None(format!("no launcher answers at {}: {error}", path.display()))
            })?;
            return Ok(Self { path: path.clone() });
        }
        let mut found = Vec::new();
        for path in sockets() {
            let instance = Self { path };
            if selector.name.is_none() {
                found.push((instance, None));
                continue;
            }
            let status = instance.status().await.ok();
            if status.as_ref().is_some_and(|status| status.name == selector.name) {
                found.push((instance, status));
            }
        }
        match (found.len(), &selector.name) {
            (1, _) => Ok(found.remove(0).0),
            (0, None) => Err(NotOne::None(
                "no launcher of this user is running here; where it has another control socket, name it by --control PATH"
                    .to_owned(),
            )),
            (0, Some(name)) => {
                Err(NotOne::None(format!("no launcher of this user is named \"{name}\"")))
            }
            _ => {
                let mut text =
                    "several launchers are running; name one by --control PATH (or --name NAME):".to_owned();
                for (instance, status) in found {
                    let status = match status {
                        Some(status) => Ok(status),
                        None => instance.status().await,
                    };
                    let told = match status {
                        Ok(status) => format!(
                            "pid {}, {}{}",
                            status.pid,
                            status.name.map(|name| format!("name {name}, ")).unwrap_or_default(),
                            status.command.join(" ")
                        ),
                        Err(error) => error,
                    };
                    // Writing to a string does not fail.
                    let _ = write!(text, "\n  {}  {told}", instance.path.display());
                }
                Err(NotOne::Several(text))
            }
        }
    }

    pub(crate) async fn status(&self) -> Result<Status, String> {
        let answer = self.ask(Method::GET, "/v1/status", None).await?.sound()?;
        serde_json::from_slice(&answer.body).map_err(|error| format!("no status: {error}"))
    }

    /// Asks, and waits for the whole answer. What only reads is asked once more where the connection breaks:
    /// an upgrade in place ends those that are open.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, String> {
        match self.ask_once(method.clone(), path, body.clone()).await {
            Err(_) if method == Method::GET => self.ask_once(method, path, body).await,
            answer => answer,
        }
    }

    async fn ask_once(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, String> {
        let response = self.open(method, path, body).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.map_err(|error| self.broke(&error))?;
        Ok(Answer { status, body: body.to_bytes().to_vec() })
    }

    /// Asks; the answer's body may go on.
    pub(crate) async fn open(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Response<Incoming>, String> {
        let stream = tokio::net::UnixStream::connect(&self.path).await;
        let stream = stream
            .map_err(|error| format!("no launcher answers at {}: {error}", self.path.display()))?;
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)));
        let request = request.map_err(|error| error.to_string())?;
        http::exchange(stream, request).await.map_err(|error| self.broke(&error))
    }

    fn broke(&self, error: &hyper::Error) -> String {
        format!("the launcher at {} broke off: {error}", self.path.display())
    }
}
