//! The server: routes, and who may ask.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::{Ask, Backend, Reply, Scale, follow};

/// No request is anywhere near this.
const LONGEST_BODY: usize = 64 << 10;
/// For the question of who is not admitted.
const PATIENCE: Duration = Duration::from_secs(2);
/// After an accept that failed for want of descriptors.
const PAUSE: Duration = Duration::from_millis(200);

/// Serves until it is dropped.
pub(crate) async fn serve(listener: std::os::unix::net::UnixListener, backend: Backend) {
    let Ok(listener) = UnixListener::from_std(listener) else { return };
    let app = routes().layer(DefaultBodyLimit::max(LONGEST_BODY)).with_state(backend);
    // Fails only where accept does, which `Admitted` deals with.
    let _ = axum::serve(Admitted(listener), app).await;
}

fn routes() -> Router<Backend> {
    Router::new()
        .route("/v1/status", get(|backend: State<Backend>| ask(backend, Ask::Status)))
        .route("/v1/history", get(|backend: State<Backend>| ask(backend, Ask::History)))
        .route("/v1/plan", get(plan))
        .route("/v1/workers", get(workers))
        .route("/v1/events", get(events))
        .route("/v1/logs", get(async |backend, query| logs(backend, None, query).await))
        .route("/v1/workers/{id}/logs", get(worker_logs))
        .route("/v1/workers/{id}/restart", post(restart))
        .route("/v1/scale", post(scale))
        .route("/v1/reload", post(|backend: State<Backend>| ask(backend, Ask::Reload)))
        .route("/v1/stop", post(|backend: State<Backend>| ask(backend, Ask::Stop)))
        .route("/v1/signal", post(signal))
        .route("/v1/send", post(send))
        .route("/v1/upgrade", post(|backend: State<Backend>| ask(backend, Ask::Upgrade)))
        .fallback(|| async { refuse(404, "there is no such path; see docs/control.md") })
        .method_not_allowed_fallback(|| async {
            refuse(405, "this path takes another method: GET to read, POST to change")
        })
}

/// A socket of which only our own user and root get anything.
struct Admitted(UnixListener);

impl axum::serve::Listener for Admitted {
    type Io = UnixStream;
    type Addr = ();

    async fn accept(&mut self) -> (UnixStream, ()) {
        loop {
            let Ok((stream, _)) = self.0.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let peer = stream.peer_cred().map(|peer| peer.uid());
            if peer.is_ok_and(|uid| uid == 0 || uid == nix::unistd::geteuid().as_raw()) {
                return (stream, ());
            }
            tokio::spawn(tokio::time::timeout(PATIENCE, turn_away(stream)));
        }
    }

    fn local_addr(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Says no. The question is read first, else the answer would be lost with what is unread.
async fn turn_away(stream: UnixStream) {
    let text = r#"{"error":"only the user of the launcher and root are admitted"}"#;
    let answer = format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    let mut question = [0; 4096];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut question) {
            // Readiness is a hint.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => break,
        }
    }
    let _ = stream.try_write(answer.as_bytes());
}

fn refuse(status: u16, error: impl Into<String>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Json(json!({ "error": error.into() }))).into_response()
}

async fn call(backend: &Backend, ask: Ask) -> Reply {
    let gone = || Reply::Refused(503, "the launcher is ending".to_owned());
    let (sender, answer) = oneshot::channel();
    if backend.calls.send((ask, sender)).await.is_err() {
        return gone();
    }
    answer.await.unwrap_or_else(|_| gone())
}

async fn ask(State(backend): State<Backend>, ask: Ask) -> Response {
    respond(call(&backend, ask).await)
}

fn respond(reply: Reply) -> Response {
    match reply {
        Reply::Json(value) => Json(value).into_response(),
        Reply::Logs(text) => plain(Body::from(text)),
        Reply::Refused(status, error) => refuse(status, error),
    }
}

fn plain(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

async fn plan(State(backend): State<Backend>) -> Response {
    // Whoever writes it does nothing else meanwhile.
    let plan = backend.plan.read().map(|plan| plan.clone()).unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], plan).into_response()
}

async fn workers(State(backend): State<Backend>) -> Response {
    match call(&backend, Ask::Status).await {
        Reply::Json(mut status) => Json(status["workers"].take()).into_response(),
        other => respond(other),
    }
}

/// `follow=false` ends with what is there.
#[derive(Debug, Deserialize)]
struct Follow {
    follow: Option<bool>,
}

async fn events(headers: HeaderMap, Query(query): Query<Follow>) -> Response {
    let after = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let body = follow::events(after.unwrap_or(0), query.follow.unwrap_or(true));
    ([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")], body)
        .into_response()
}

async fn worker_logs(
    backend: State<Backend>,
    Path(id): Path<String>,
    query: Query<Follow>,
) -> Response {
    match slot(&id) {
        Ok(id) => logs(backend, Some(id), query).await,
        Err(refused) => refused,
    }
}

async fn logs(
    State(backend): State<Backend>,
    id: Option<u32>,
    Query(query): Query<Follow>,
) -> Response {
    // Before the rest is read, so that nothing falls in between.
    let news = backend.output.subscribe();
    match call(&backend, Ask::Logs(id)).await {
        Reply::Logs(kept) if query.follow == Some(true) => plain(follow::output(kept, id, news)),
        other => respond(other),
    }
}

async fn restart(backend: State<Backend>, Path(id): Path<String>) -> Response {
    match slot(&id) {
        Ok(id) => ask(backend, Ask::Restart(id)).await,
        Err(refused) => refused,
    }
}

#[expect(clippy::result_large_err, reason = "it is the answer")]
fn slot(text: &str) -> Result<u32, Response> {
    let id = text.parse().ok().filter(|id| *id > 0);
    id.ok_or_else(|| {
        refuse(400, format!("bad worker \"{text}\": expected its id, a whole number from 1"))
    })
}

/// What came with a request, if it came whole.
type Sent = Result<Bytes, BytesRejection>;

#[expect(clippy::result_large_err, reason = "it is the answer")]
fn body(bytes: &Sent) -> Result<Value, Response> {
    let bytes = bytes.as_ref().map_err(|rejection| match rejection.status().as_u16() {
        413 => refuse(
            413,
            format!("the body is larger than {} KiB; send less at once", LONGEST_BODY >> 10),
        ),
        status => refuse(status, format!("the body did not come whole: {rejection}")),
    })?;
    serde_json::from_slice(bytes)
        .map_err(|error| refuse(400, format!("the body is no valid JSON: {error}")))
}

/// `{"workers": 4}`, `{"workers": "+1"}`, `{"workers": "auto"}`.
async fn scale(backend: State<Backend>, bytes: Sent) -> Response {
    let value = match body(&bytes) {
        Ok(value) => value["workers"].clone(),
        Err(refused) => return refused,
    };
    let text = match &value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match Scale::parse(&text) {
        Some(scale) => ask(backend, Ask::Scale(scale)).await,
        None => refuse(400, format!("bad workers {value}: expected {}", Scale::FORMS)),
    }
}

/// `{"signal": "USR1"}`, with `"worker": 2` for one alone.
async fn signal(backend: State<Backend>, bytes: Sent) -> Response {
    let value = match body(&bytes) {
        Ok(value) => value,
        Err(refused) => return refused,
    };
    let text = match &value["signal"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let Some(number) = crate::units::parse_signal(&text) else {
        return refuse(
            400,
            format!(
                "bad signal {}: expected a name or a number, such as USR1 or 10",
                value["signal"]
            ),
        );
    };
    match one(&value) {
        Ok(worker) => ask(backend, Ask::Signal { number, worker }).await,
        Err(refused) => refused,
    }
}

/// `"worker": 2`, where not all are meant.
#[expect(clippy::result_large_err, reason = "it is the answer")]
fn one(value: &Value) -> Result<Option<u32>, Response> {
    match &value["worker"] {
        Value::Null => Ok(None),
        other => slot(other.to_string().trim_matches('"')).map(Some),
    }
}

/// `{"message": …}`, with `"worker": 2` for one alone.
async fn send(backend: State<Backend>, bytes: Sent) -> Response {
    let mut value = match body(&bytes) {
        Ok(value) => value,
        Err(refused) => return refused,
    };
    let Some(message) = value.get_mut("message").map(Value::take) else {
        return refuse(
            400,
            "no message: expected {\"message\": JSON}, and \"worker\": ID for one alone",
        );
    };
    match one(&value) {
        Ok(worker) => ask(backend, Ask::Send { message, worker }).await,
        Err(refused) => refused,
    }
}
