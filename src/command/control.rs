//! The commands that drive a launcher that runs already, as clients of its control interface.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::ArgMatches;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Value, json};

use super::print;
use crate::control::{Answer, Instance, NotOne, Scale, Selector};
use crate::exit::{FAILURE, Failure, SUCCESS, usage};
use crate::report;
use crate::units::{parse_signal, plural, printable};

/// How long an upgrade may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_millis(20);

/// Whether the answer is printed as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json,
}

/// Runs one of them.
pub(super) fn run(name: &str, matches: &ArgMatches) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the event loop")?;
    tokio::task::LocalSet::new().block_on(&runtime, perform(name, matches))
}

async fn perform(name: &str, matches: &ArgMatches) -> Result<u8, Failure> {
    let text = |id: &str| matches.try_get_one::<String>(id).ok().flatten().cloned();
    let flag = |id: &str| matches.try_get_one::<bool>(id).ok().flatten().copied() == Some(true);
    let form = match text("format").as_deref() {
        None | Some("text") => Form::Text,
        Some("json") => Form::Json,
        Some(other) => {
            return Err(usage(format!(
                "bad value \"{other}\" for --format: expected text or json"
            )));
        }
    };
    // What is wrong with the words is said before anybody is looked for.
    let id = text("id").map(|id| worker_id(&id)).transpose()?;
    let order = Order::parse(name, text("value").as_deref(), id)?;
    let control = text("control").filter(|path| path != "off" && !path.is_empty());
    let selector = Selector { control: control.map(Into::into), name: text("name") };
    let instance = Instance::find(&selector).await.map_err(|error| match error {
        NotOne::None(error) => failed(error),
        NotOne::Several(error) => usage(error),
    })?;
    let client = Client { instance, form };
    match order {
        Order::Status => client.status(flag("check")).await,
        Order::Post { path, body } => client.post(name, &path, body).await,
        Order::Stop => client.stop().await,
        Order::Upgrade => client.upgrade().await,
        Order::Logs(id) => client.logs(id, flag("follow")).await,
        Order::Events => client.events(flag("follow")).await,
    }
}

fn worker_id(text: &str) -> Result<u32, Failure> {
    text.parse().ok().filter(|id| *id > 0).ok_or_else(|| {
        usage(format!("bad worker \"{text}\": expected its id, a whole number from 1"))
    })
}

/// What to ask.
enum Order {
    Status,
    Post { path: String, body: Option<Value> },
    Stop,
    Upgrade,
    Logs(Option<u32>),
    Events,
}

impl Order {
    fn parse(name: &str, value: Option<&str>, id: Option<u32>) -> Result<Self, Failure> {
        let post = |path: &str, body| Self::Post { path: format!("/v1/{path}"), body };
        let value = value.unwrap_or_default();
        Ok(match name {
            "scale" if Scale::parse(value).is_none() => {
                let forms = Scale::FORMS;
                return Err(usage(format!("bad number of workers \"{value}\": expected {forms}")));
            }
            "scale" => post("scale", Some(json!({ "workers": value }))),
            "signal" if parse_signal(value).is_none() => {
                return Err(usage(format!(
                    "bad signal \"{value}\": expected a name or a number, such as USR1 or 10"
                )));
            }
            "signal" => post("signal", Some(json!({ "signal": value, "worker": id }))),
            "send" => {
                let message = crate::settings::message(value.to_owned());
                post("send", Some(json!({ "message": message, "worker": id })))
            }
            "restart" => post(&format!("workers/{}/restart", id.unwrap_or_default()), None),
            "reload" => post(name, None),
            "upgrade" => Self::Upgrade,
            "stop" => Self::Stop,
            "logs" => Self::Logs(id),
            "events" => Self::Events,
            _ => Self::Status,
        })
    }
}

struct Client {
    instance: Instance,
    form: Form,
}

/// What the launcher refuses, or that it does not answer.
fn failed(error: String) -> Failure {
    Failure::Other(anyhow!(error))
}

impl Client {
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, Failure> {
        let answer = self.instance.ask(method, path, body).await.map_err(failed)?;
        answer.sound().map_err(failed)
    }

    async fn status(&self, check: bool) -> Result<u8, Failure> {
        let answer = self.ask(Method::GET, "/v1/status", None).await?;
        let status: crate::control::Status = serde_json::from_slice(&answer.body)
            .context("the launcher's answer is not what this version understands")?;
        let serving = status.workers.iter().filter(|worker| worker.ready).count();
        match self.form {
            Form::Json => raw(&answer)?,
            Form::Text if check => {
                let state = if status.ready { "ready" } else { "not ready" };
                print(&format!(
                    "{state}: {serving} of {} serve\n",
                    plural(status.target, "worker")
                ))?;
            }
            Form::Text => print(&report::status(&status))?,
        }
        Ok(if check && !status.ready { FAILURE } else { SUCCESS })
    }

    /// Waits until another program answers in the launcher's place.
    async fn upgrade(&self) -> Result<u8, Failure> {
        let before = self.instance.status().await.map_err(failed)?;
        self.ask(Method::POST, "/v1/upgrade", None).await?;
        let end = tokio::time::Instant::now() + PATIENCE;
        let status = loop {
            // Between the two programs nobody answers.
            match self.instance.status().await {
                Ok(status) if status.upgrades > before.upgrades => break status,
                Ok(status) if status.upgrade_error != before.upgrade_error => {
                    return Err(failed(status.upgrade_error.unwrap_or_default()));
                }
                _ if tokio::time::Instant::now() > end => {
                    return Err(failed(
                        "the launcher does not answer after the upgrade".to_owned(),
                    ));
                }
                _ => tokio::time::sleep(PAUSE).await,
            }
        };
        match self.form {
            Form::Json => print(&format!(
                "{}\n",
                json!({ "version": status.version, "upgrades": status.upgrades })
            ))?,
            Form::Text => print(&format!(
                "version {} runs in place of {}, with all workers\n",
                status.version, before.version
            ))?,
        }
        Ok(SUCCESS)
    }

    async fn post(&self, name: &str, path: &str, body: Option<Value>) -> Result<u8, Failure> {
        let answer = self.ask(Method::POST, path, body).await?;
        if self.form == Form::Json {
            raw(&answer)?;
            return Ok(SUCCESS);
        }
        let told = answer.json();
        let number = |key: &str| told[key].as_u64().unwrap_or_default();
        let text = match name {
            "scale" => {
                let note =
                    told["note"].as_str().map(|note| format!("; {note}")).unwrap_or_default();
                let before = number("before");
                format!("{} instead of {before}{note}", plural(number("workers"), "worker"))
            }
            "send" => format!("sent to {}", plural(number("sent"), "worker")),
            "signal" => format!("sent to {}", plural(number("signalled"), "worker")),
            "reload" => "all workers are replaced".to_owned(),
            "restart" => "the worker is replaced".to_owned(),
            _ => String::new(),
        };
        print(&format!("{text}\n"))?;
        Ok(SUCCESS)
    }

    /// Waits until the launcher has gone: its events end with it.
    async fn stop(&self) -> Result<u8, Failure> {
        let events = self.instance.open(Method::GET, "/v1/events", None).await.map_err(failed)?;
        let answer = self.ask(Method::POST, "/v1/stop", None).await?;
        let mut body = events.into_body();
        while let Some(Ok(_)) = body.frame().await {}
        match self.form {
            Form::Json => raw(&answer)?,
            Form::Text => print("stopped\n")?,
        }
        Ok(SUCCESS)
    }

    async fn logs(&self, id: Option<u32>, follow: bool) -> Result<u8, Failure> {
        let path = match id {
            Some(id) => format!("/v1/workers/{id}/logs?follow={follow}"),
            None => format!("/v1/logs?follow={follow}"),
        };
        if !follow {
            let answer = self.ask(Method::GET, &path, None).await?;
            match self.form {
                Form::Text => write(&answer.body)?,
                Form::Json => {
                    let text = String::from_utf8_lossy(&answer.body);
                    let lines: Vec<&str> = text.lines().collect();
                    print(&format!("{}\n", json!({ "worker": id, "lines": lines })))?;
                }
            }
            return Ok(SUCCESS);
        }
        self.stream(&path, write).await
    }

    async fn events(&self, follow: bool) -> Result<u8, Failure> {
        let form = self.form;
        let mut rest = Vec::new();
        self.stream(&format!("/v1/events?follow={follow}"), |piece| {
            rest.extend_from_slice(piece);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line);
                if let Some(data) = line.trim_end().strip_prefix("data: ") {
                    print(&match form {
                        Form::Json => format!("{data}\n"),
                        Form::Text => event_line(data),
                    })?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn stream(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<u8, Failure> {
        let response = self.instance.open(Method::GET, path, None).await.map_err(failed)?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        if status != 200 {
            let body = body.collect().await.map(|body| body.to_bytes().to_vec());
            let answer = Answer { status, body: body.unwrap_or_default() };
            answer.sound().map_err(failed)?;
            return Ok(SUCCESS);
        }
        // It ends with the launcher.
        while let Some(Ok(frame)) = body.frame().await {
            if let Some(piece) = frame.data_ref() {
                take(piece)?;
            }
        }
        Ok(SUCCESS)
    }
}

fn raw(answer: &Answer) -> Result<(), Failure> {
    write(&answer.body)?;
    write(b"\n")
}

/// `2026-11-24T03:16:07.123456Z warn  worker 1 (pid 7) ended with status 3`.
fn event_line(data: &str) -> String {
    let event: Value = serde_json::from_str(data).unwrap_or_default();
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    format!("{} {:5} {}\n", text("time"), text("level"), printable(text("message")))
}

/// Bytes as they are; a reader that has seen enough ends us.
fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            std::process::exit(i32::from(SUCCESS))
        }
        Err(error) => Err(Failure::Other(
            anyhow::Error::new(error).context("cannot write to standard output"),
        )),
        Ok(()) => Ok(()),
    }
}
