//! Serves a daemon that exists in memory alone: 1,000 processes, 50,000 stacks, hostile names.
//!
//! For work on the page and on clients: `cargo run --example http_demo -- [ADDRESS] [PROCESSES] [STACKS]`. It prints the
//! address to open, with the token, and ends with SIGINT.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use leaktrace::api;
use leaktrace::daemon::{backend, http};
use leaktrace::{export, model, report};

#[path = "../src/daemon/http/tests/fake.rs"]
mod fake;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr = arguments
        .next()
        .map_or(Ok(([127, 0, 0, 1], 7373).into()), |text| text.parse())?;
    let mut number = |default: u32| arguments.next().map_or(Ok(default), |text| text.parse());
    let fake = fake::Fake::new(number(1000)?, number(50_000)?);
    let folder = std::env::temp_dir().join(format!("leaktrace-demo-{}", nix::unistd::geteuid()));
    let settings = http::Settings {
        listen: Some(address),
        socket: Some(folder.join("socket")),
        token_file: folder.join("token"),
        ..http::Settings::default()
    };
    let token_file = settings.token_file.clone();
    let shutdown = async {
        // Without a handler for it the signal itself ends the program.
        let _ = tokio::signal::ctrl_c().await;
    };
    // The folder of the token is made before the socket in it.
    let server = http::serve(settings, Arc::new(fake), shutdown).await?;
    let token = std::fs::read_to_string(&token_file).context("failed to read the token")?;
    if let Some(address) = server.address() {
        println!("http://{address}/login#token={}", token.trim());
        println!(
            "go tool pprof http://leaktrace:{}@{address}/debug/pprof/heap?pid=100",
            token.trim()
        );
    }
    println!(
        "first pid: {}; socket: {}",
        fake::FIRST,
        folder.join("socket").display()
    );
    server.finished().await;
    Ok(())
}
