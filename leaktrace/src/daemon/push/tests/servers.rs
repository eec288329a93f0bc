//! Servers that note what arrives.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use opentelemetry_proto::tonic::collector::profiles::v1development::{
    ExportProfilesServiceRequest, ExportProfilesServiceResponse,
    profiles_service_server::{ProfilesService, ProfilesServiceServer},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Status, codec::CompressionEncoding, metadata::MetadataMap};

/// A server on loopback, until it is dropped.
pub(super) struct Server<T> {
    /// Where it is.
    pub url: String,
    seen: Arc<Mutex<Vec<T>>>,
    task: JoinHandle<()>,
}

impl<T> Drop for Server<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T> Server<T> {
    /// What arrived since it was last asked.
    pub(super) fn take(&self) -> Vec<T> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A request over HTTP.
pub(super) struct Post {
    pub uri: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Post {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}

/// A message over gRPC.
pub(super) struct Call {
    pub metadata: MetadataMap,
    pub message: ExportProfilesServiceRequest,
}

/// A free port of loopback.
pub(super) async fn listen(port: u16) -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    (listener, url)
}

/// An answer with a status and a body.
pub(super) fn answer(status: u16, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

/// Serves HTTP; the closure gets the number of the request, beginning with 0, and its URI.
pub(super) async fn http<F, R>(port: u16, reply: F) -> Server<Post>
where
    F: Fn(usize, String) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response> + Send + 'static,
{
    let (listener, url) = listen(port).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let number = Arc::new(Mutex::new(0));
    let notes = Arc::clone(&seen);
    let handler = move |request: Request| {
        let (notes, number, reply) = (Arc::clone(&notes), Arc::clone(&number), reply.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = to_bytes(body, 64 << 20).await.expect("a body").to_vec();
            let uri = parts.uri.to_string();
            notes.lock().expect("no panic").push(Post {
                uri: uri.clone(),
                headers: parts.headers,
                body,
            });
            let mine = {
                let mut number = number.lock().expect("no panic");
                *number += 1;
                *number - 1
            };
            reply(mine, uri).await
        }
    };
    let router = Router::new().fallback(handler);
    let task = tokio::spawn(async move {
        let _ = axum::serve(listener, router).await;
    });
    Server { url, seen, task }
}

struct Service<F> {
    seen: Arc<Mutex<Vec<Call>>>,
    reply: F,
}

#[tonic::async_trait]
impl<F> ProfilesService for Service<F>
where
    F: Fn(usize) -> Result<ExportProfilesServiceResponse, Status> + Send + Sync + 'static,
{
    async fn export(
        &self,
        request: tonic::Request<ExportProfilesServiceRequest>,
    ) -> Result<tonic::Response<ExportProfilesServiceResponse>, Status> {
        let number = {
            let mut seen = self.seen.lock().expect("no panic");
            seen.push(Call {
                metadata: request.metadata().clone(),
                message: request.into_inner(),
            });
            seen.len() - 1
        };
        (self.reply)(number).map(tonic::Response::new)
    }
}

/// Serves OTLP over gRPC; the closure gets the number of messages since they were last taken, beginning with 0.
pub(super) async fn grpc<F>(reply: F) -> Server<Call>
where
    F: Fn(usize) -> Result<ExportProfilesServiceResponse, Status> + Send + Sync + 'static,
{
    let (listener, url) = listen(0).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = Service {
        seen: Arc::clone(&seen),
        reply,
    };
    let service = ProfilesServiceServer::new(service).accept_compressed(CompressionEncoding::Gzip);
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let connection = Builder::new(TokioExecutor::new());
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Server { url, seen, task }
}
