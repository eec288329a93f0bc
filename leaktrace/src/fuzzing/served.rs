//! What callers of the HTTP side send.

use std::cell::RefCell;

use crate::daemon::http;

thread_local! {
    static RUNTIME: RefCell<tokio::runtime::Runtime> = RefCell::new(
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime without files can be made"),
    );
}

/// Bytes on a connection: the first says of which kind it is. Each request is answered, or the connection ends.
pub(super) fn http_request(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    RUNTIME.with_borrow(|runtime| runtime.block_on(http::answer_any(bytes, kind & 1 != 0)));
}
