//! OTLP over gRPC.
//!
//! Owns the channel and the metadata of a target; the messages come from `otlp`. Invariant: an answer is at most
//! [`MOST_ANSWER`] bytes long.

use std::path::PathBuf;

use opentelemetry_proto::tonic::collector::profiles::v1development::{
    ExportProfilesServiceRequest, profiles_service_client::ProfilesServiceClient,
};
use tonic::{
    Request,
    codec::CompressionEncoding,
    metadata::MetadataMap,
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use super::{
    failure::{Failure, Receipt, causes, of_grpc},
    http::{MOST_ANSWER, connect_timeout},
    otlp,
    settings::TargetSettings,
    token,
};

/// Sends to one target.
#[derive(Debug)]
pub(super) struct Caller {
    client: ProfilesServiceClient<Channel>,
    metadata: MetadataMap,
    token_file: Option<PathBuf>,
}

impl Caller {
    /// A channel of its own. It connects when it is first used, and again when it broke.
    pub(super) fn new(settings: &TargetSettings) -> Result<Self, String> {
        let url = settings.endpoint().map_err(|error| error.to_string())?;
        let headers = settings.header_map().map_err(|error| error.to_string())?;
        let secure = url.scheme() == "https";
        let mut endpoint = Endpoint::from_shared(String::from(url))
            .and_then(|endpoint| endpoint.user_agent(concat!("leaktrace/", env!("CARGO_PKG_VERSION"))))
            .map_err(|error| causes(&error))?
            .connect_timeout(connect_timeout(settings.timeout))
            .http2_max_header_list_size(16 << 10);
        if secure {
            let tls = ClientTlsConfig::new().with_enabled_roots();
            endpoint = endpoint.tls_config(tls).map_err(|error| causes(&error))?;
        }
        let client = ProfilesServiceClient::new(endpoint.connect_lazy())
            .send_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(MOST_ANSWER)
            .max_encoding_message_size(usize::MAX);
        Ok(Self {
            client,
            metadata: MetadataMap::from_headers(headers),
            token_file: settings.token_file.clone(),
        })
    }

    /// Sends a message and reads the answer.
    pub(super) async fn call(&self, message: ExportProfilesServiceRequest) -> Result<Receipt, Failure> {
        let parts = otlp::parts(&message);
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        if let Some(path) = &self.token_file {
            let value = token::authorization(path).await?;
            let mut headers = self.metadata.clone().into_headers();
            headers.insert(reqwest::header::AUTHORIZATION, value);
            *request.metadata_mut() = MetadataMap::from_headers(headers);
        }
        match self.client.clone().export(request).await {
            Ok(response) => Ok(otlp::receipt(response.get_ref(), parts)),
            Err(status) => Err(of_grpc(&status)),
        }
    }
}
