//! Whose record a connection takes.

use super::*;
use crate::addr::OriginAddr;
use std::time::Duration;
use tokio::net::TcpListener;

/// One record for whoever asks; asking may end the client.
struct Table(Mutex<(usize, Option<TcpStream>)>);

impl Table {
    fn new(ended_by_asking: Option<TcpStream>) -> Self {
        Self(Mutex::new((0, ended_by_asking)))
    }

    fn asked(&self) -> usize {
        self.0.lock().unwrap().0
    }
}

impl OriginLookup for Table {
    fn take(&self, _: NetnsCookie, _: PeerAddr) -> std::io::Result<Option<Recorded>> {
        let mut inner = self.0.lock().unwrap();
        inner.0 += 1;
        if let Some(client) = inner.1.take() {
            reset_on_close(&client);
        }
        Ok(Some(Recorded {
            origin: OriginAddr("192.0.2.1:443".parse().unwrap()),
            cgroup_id: 1,
            tgid: 1,
            uid: 0,
            connected: Duration::ZERO,
        }))
    }
}

async fn connected() -> (TcpStream, TcpStream, PeerAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    (client, stream, PeerAddr(peer))
}

#[tokio::test]
async fn a_connection_takes_its_own_record() {
    let (_client, stream, peer) = connected().await;
    let table = Table::new(None);
    let taken = take(&table, &stream, peer, NetnsCookie(1)).unwrap();
    assert_eq!((taken.unwrap().cgroup_id, table.asked()), (1, 1));
}

#[tokio::test]
async fn a_client_that_is_gone_leaves_the_record_to_the_next_with_its_address() {
    let (client, stream, peer) = connected().await;
    reset_on_close(&client);
    drop(client);
    let table = Table::new(None);
    let error = take(&table, &stream, peer, NetnsCookie(1)).unwrap_err();
    assert_eq!((error.reason(), table.asked()), ("closed_early", 0));
}

#[tokio::test]
async fn a_client_that_goes_meanwhile_is_not_served_with_what_may_be_anothers_record() {
    let (client, stream, peer) = connected().await;
    let table = Table::new(Some(client));
    let error = take(&table, &stream, peer, NetnsCookie(1)).unwrap_err();
    assert_eq!((error.reason(), table.asked()), ("closed_early", 1));
}
