//! Tunnels over real loopback sockets.

use super::*;
use crate::addr::OriginAddr;
use crate::dial::Unflagged;
use std::sync::Arc;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, accepted) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (client.unwrap(), accepted.unwrap().0)
}

fn recorded(origin: std::net::SocketAddr) -> Recorded {
    Recorded {
        origin: OriginAddr(origin),
        cgroup_id: 1,
        tgid: 1,
        uid: 0,
        connected: Duration::ZERO,
    }
}

fn dialer() -> Dialer {
    Dialer::new(Arc::new(Unflagged), Duration::from_secs(1))
}

const IDLE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn bytes_and_half_closes_go_through() {
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = origin.local_addr().unwrap();
    let (mut workload, accepted) = pair().await;
    let tunnel = tokio::spawn(async move { run(accepted, &recorded(addr), b"head ", &dialer(), IDLE).await });
    let (mut served, _) = origin.accept().await.unwrap();
    workload.write_all(b"body").await.unwrap();
    workload.shutdown().await.unwrap();
    let mut got = String::new();
    served.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "head body", "the origin sees the half-close");
    served.write_all(b"answer").await.unwrap();
    drop(served);
    let mut answer = String::new();
    workload.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(
        tunnel.await.unwrap().unwrap(),
        Counts {
            to_origin: 9,
            to_workload: 6
        }
    );
}

#[tokio::test]
async fn an_unreachable_origin_is_told_by_reset() {
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (mut workload, accepted) = pair().await;
    let error = run(accepted, &recorded(free), b"", &dialer(), IDLE)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Dial(dial::Error::Connect { .. })));
    let kind = workload.read(&mut [0]).await.unwrap_err().kind();
    assert_eq!(kind, io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_of_the_origin_is_a_reset_for_the_workload() {
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = origin.local_addr().unwrap();
    let (mut workload, accepted) = pair().await;
    let tunnel = tokio::spawn(async move { run(accepted, &recorded(addr), b"", &dialer(), IDLE).await });
    let (mut served, _) = origin.accept().await.unwrap();
    workload.write_all(b"x").await.unwrap();
    served.read_exact(&mut [0]).await.unwrap();
    reset_on_close(&served);
    drop(served);
    assert!(matches!(tunnel.await.unwrap(), Err(Error::Broken(_))));
    assert_eq!(
        workload.read(&mut [0]).await.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
}

#[tokio::test]
async fn an_idle_tunnel_ends() {
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = origin.local_addr().unwrap();
    let (_workload, accepted) = pair().await;
    let limit = Duration::from_millis(100);
    let error = run(accepted, &recorded(addr), b"", &dialer(), limit)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Idle { .. }));
}

#[tokio::test]
async fn the_first_speaker_is_found_without_taking_its_byte() {
    let (mut workload, client) = pair().await;
    let (mut server, mut origin) = pair().await;
    assert_eq!(
        first_speaker(&client, &origin, Duration::from_millis(20)).await,
        Speaker::Nobody
    );
    server.write_all(b"220").await.unwrap();
    assert_eq!(first_speaker(&client, &origin, IDLE).await, Speaker::Origin);
    let mut greeting = [0; 3];
    origin.read_exact(&mut greeting).await.unwrap();
    workload.write_all(b"x").await.unwrap();
    assert_eq!(first_speaker(&client, &origin, IDLE).await, Speaker::Client);
}
