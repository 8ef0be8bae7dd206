//! For the fuzz targets, which see only what is public.

use super::response::{Dialect, Reply, read};

/// Reads an answer of the status that the first byte chooses.
pub fn answer(bytes: &[u8]) {
    const SECRET: &str = "client-secret-0001";
    const STATUSES: [u16; 7] = [200, 200, 302, 400, 401, 429, 503];
    let Some((&first, body)) = bytes.split_first() else {
        return;
    };
    let reply = Reply {
        status: http::StatusCode::from_u16(STATUSES[usize::from(first) % STATUSES.len()]).expect("a status"),
        headers: &http::HeaderMap::new(),
        body,
        complete: first < 0xf0,
    };
    match read(&reply, std::time::UNIX_EPOCH, Dialect::TokenVault, &[SECRET]) {
        Ok(granted) => assert!(!granted.token.is_empty()),
        Err(error) => assert!(!error.to_string().contains(SECRET), "{error}"),
    }
}
