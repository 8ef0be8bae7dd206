//! Tunnels over real loopback sockets.

use super::*;
use tokio::net::TcpListener;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, accepted) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    (client.unwrap(), accepted.unwrap().0)
}

const IDLE: Duration = Duration::from_secs(5);

type Running = tokio::task::JoinHandle<Result<Counts, Error>>;

/// A running tunnel: the workload's end and the origin's.
async fn tunnel(head: &'static [u8], pipes: &Pipes, idle: Duration) -> (TcpStream, TcpStream, Running) {
    let ((workload, client), (origin, served)) = (pair().await, pair().await);
    let pipes = pipes.clone();
    let running = tokio::spawn(async move { run(client, origin, head, &pipes, idle).await });
    (workload, served, running)
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_le_bytes()[7]
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[tokio::test]
async fn bytes_and_half_closes_go_through() {
    let (mut workload, mut served, running) = tunnel(b"head ", &Pipes::new(0), IDLE).await;
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
    let counts = Counts {
        to_origin: 9,
        to_workload: 6,
    };
    assert_eq!(running.await.unwrap().unwrap(), counts);
}

/// Copied or piped, the same bytes arrive, also after a half-close of the other direction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_streams_arrive_whole_by_either_path() {
    for limit in [0, 1, 2] {
        let pipes = Pipes::new(limit);
        let (workload, served, running) = tunnel(b"", &pipes, IDLE).await;
        let (up, down) = (noise(5_000_001, 3), noise(7_000_003, 5));
        let end = |stream: TcpStream, sent: Vec<u8>, pause: bool| async move {
            let (mut read, mut write) = stream.into_split();
            let writing = tokio::spawn(async move {
                for part in sent.chunks(1_000_000) {
                    write.write_all(part).await.unwrap();
                    if pause {
                        sleep(Duration::from_millis(20)).await;
                    }
                }
                write.shutdown().await.unwrap();
                write
            });
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            (writing.await.unwrap(), got)
        };
        let ((_w, got_down), (_s, got_up)) =
            tokio::join!(end(workload, up.clone(), false), end(served, down.clone(), true));
        assert!(got_up == up && got_down == down, "with {limit} pipes");
        let counts = running.await.unwrap().unwrap();
        assert_eq!((counts.to_origin, counts.to_workload), (5_000_001, 7_000_003));
        assert_eq!(pipes.free(), limit, "given back");
    }
}

/// Streams until a pipe carries it, so that what follows is done to the piped path.
async fn pump(workload: &mut TcpStream, served: &mut TcpStream, pipes: &Pipes) {
    let (part, mut got) = (noise(64 * 1024, 7), vec![0; 64 * 1024]);
    for _ in 0..1024 {
        workload.write_all(&part).await.unwrap();
        served.read_exact(&mut got).await.unwrap();
        assert!(got == part);
        if pipes.free() == 0 {
            return;
        }
    }
    panic!("a long stream gets a pipe");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_goes_through_both_paths_in_both_directions() {
    for (limit, by_origin) in [(0, true), (0, false), (1, true), (1, false)] {
        let pipes = Pipes::new(limit);
        let (mut workload, mut served, running) = tunnel(b"", &pipes, IDLE).await;
        pump(&mut workload, &mut served, &pipes).await;
        let (goes, mut stays) = if by_origin {
            (served, workload)
        } else {
            (workload, served)
        };
        reset_on_close(&goes);
        drop(goes);
        assert!(matches!(running.await.unwrap(), Err(Error::Broken(_))));
        let kind = stays.read(&mut [0]).await.unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::ConnectionReset, "{limit} {by_origin}");
        assert_eq!(pipes.free(), limit);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_stream_gives_its_pipe_back_and_goes_on() {
    let pipes = Pipes::new(1);
    let (mut workload, mut served, _running) = tunnel(b"", &pipes, IDLE * 10).await;
    pump(&mut workload, &mut served, &pipes).await;
    while pipes.free() == 0 {
        sleep(Duration::from_millis(50)).await;
    }
    workload.write_all(b"more").await.unwrap();
    served.read_exact(&mut [0; 4]).await.unwrap();
    pump(&mut workload, &mut served, &pipes).await;
}

#[tokio::test]
async fn an_idle_tunnel_ends() {
    let (_workload, _served, running) = tunnel(b"", &Pipes::new(0), Duration::from_millis(100)).await;
    assert!(matches!(running.await.unwrap(), Err(Error::Idle { .. })));
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
