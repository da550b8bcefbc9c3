//! One HTTP/1.1 exchange as a client, over whatever stream. Depends on nothing of ours.

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Sends `request` and returns the answer's head, with its body still to come.
///
/// Must be called inside a `LocalSet`, in which the connection lives on as long as its body is read.
pub(crate) async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(async move {
        // What goes wrong here, the request or its body is told too.
        let _ = connection.await;
    });
    sender.send_request(request).await
}
