//! Whose record a connection takes.

use super::*;
use crate::addr::OriginAddr;
use std::pin::Pin;
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

impl Callers for Table {
    fn take<'a>(
        &'a self,
        _: NetnsCookie,
        _: PeerAddr,
    ) -> Pin<Box<dyn Future<Output = std::io::Result<Option<Call>>> + Send + 'a>> {
        let mut inner = self.0.lock().unwrap();
        inner.0 += 1;
        if let Some(client) = inner.1.take() {
            reset_on_close(&client);
        }
        let recorded = Recorded {
            origin: OriginAddr("192.0.2.1:443".parse().unwrap()),
            cgroup_id: 1,
            tgid: 1,
            uid: 0,
            connected: Duration::ZERO,
        };
        Box::pin(std::future::ready(Ok(Some((recorded, Workload::default())))))
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
    let taken = take(&table, &stream, peer, NetnsCookie(1)).await.unwrap();
    assert_eq!((taken.unwrap().0.cgroup_id, table.asked()), (1, 1));
}

#[tokio::test]
async fn a_client_that_is_gone_leaves_the_record_to_the_next_with_its_address() {
    let (client, stream, peer) = connected().await;
    reset_on_close(&client);
    drop(client);
    let table = Table::new(None);
    let error = take(&table, &stream, peer, NetnsCookie(1)).await.unwrap_err();
    assert_eq!((error.reason(), table.asked()), ("closed_early", 0));
}

#[tokio::test]
async fn a_client_that_goes_meanwhile_is_not_served_with_what_may_be_anothers_record() {
    let (client, stream, peer) = connected().await;
    let table = Table::new(Some(client));
    let error = take(&table, &stream, peer, NetnsCookie(1)).await.unwrap_err();
    assert_eq!((error.reason(), table.asked()), ("closed_early", 1));
}

/// A client, its connection as accepted, and an origin that gives each connection to the test.
async fn between() -> (TcpStream, TcpStream, TcpListener, OriginAddr, Dialer) {
    let (client, stream, _) = connected().await;
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = OriginAddr(origin.local_addr().unwrap());
    let dialer = Dialer::new(Arc::new(dial::Unflagged), Duration::from_secs(5));
    (client, stream, origin, address, dialer)
}

const LONG: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_client_that_speaks_at_once_lets_nothing_be_dialled() {
    let (client, stream, origin, address, dialer) = between().await;
    client.try_write(b"x").unwrap();
    let (speaker, early) = early::first_word(&stream, &dialer, address, LONG, LONG)
        .await
        .unwrap();
    assert_eq!(speaker, Speaker::Client);
    assert!(matches!(early, Early::None));
    let nobody = tokio::time::timeout(Duration::from_millis(20), origin.accept());
    assert!(nobody.await.is_err());
}

#[tokio::test]
async fn whoever_speaks_first_is_told_with_the_connection_that_was_made() {
    let soon = Duration::from_millis(1);
    let (_client, stream, origin, address, dialer) = between().await;
    let (heard, accepted) = tokio::join!(early::first_word(&stream, &dialer, address, soon, LONG), async {
        let (served, _) = origin.accept().await.unwrap();
        served.try_write(b"220").unwrap();
        served
    });
    let (speaker, early) = heard.unwrap();
    assert_eq!(speaker, Speaker::Origin);
    // It has spoken, which no TLS origin does: not for a request.
    assert!(early.unused().await.unwrap().is_none());
    drop(accepted);

    let (client, stream, origin, address, dialer) = between().await;
    let (heard, accepted) = tokio::join!(early::first_word(&stream, &dialer, address, soon, LONG), async {
        let (served, _) = origin.accept().await.unwrap();
        client.try_write(b"x").unwrap();
        served
    });
    let (speaker, early) = heard.unwrap();
    assert_eq!(speaker, Speaker::Client);
    let used = early.unused().await.unwrap().expect("a silent connection");
    assert_eq!(used.local_addr().unwrap(), accepted.peer_addr().unwrap());

    let (_client, stream, _origin, address, dialer) = between().await;
    let heard = early::first_word(&stream, &dialer, address, soon, 20 * soon).await;
    let (speaker, early) = heard.unwrap();
    assert_eq!(speaker, Speaker::Nobody);
    early.connect(&dialer, address).await.unwrap();
}

#[tokio::test]
async fn an_origin_that_cannot_be_reached_ends_the_wait() {
    let (_client, stream, origin, address, dialer) = between().await;
    drop(origin);
    let heard = early::first_word(&stream, &dialer, address, Duration::from_millis(1), LONG).await;
    assert!(matches!(heard, Err(dial::Error::Connect { .. })));
}
