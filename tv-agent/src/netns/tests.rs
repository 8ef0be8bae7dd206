//! What can be told without a namespace of our own; the kernel and e2e tests enter real ones.

use super::*;

#[tokio::test]
async fn the_own_namespace_is_entered_without_a_thread_and_never_closed() {
    let own = Netns::OWN;
    assert!(own.socket(true).await.is_ok());
    assert!(own.loopback_up().await.unwrap());
    own.close();
    assert!(!own.is_closed() && own.socket(true).await.is_ok());
    assert_eq!(own, Netns::OWN);
}

#[tokio::test]
async fn a_process_that_has_moved_is_not_followed() {
    let visitors = Visitors::new().unwrap();
    let process = i32::try_from(std::process::id()).unwrap();
    let elsewhere = NetnsId { dev: 0, ino: 1 };
    for (process, id) in [(process, elsewhere), (i32::MAX, own_id().unwrap())] {
        let error = Netns::open(process, id, &visitors).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}

#[test]
fn only_a_real_route_makes_ipv6_routable() {
    let line = |dst: &str, len: &str, flags: &str, dev: &str| {
        format!(
            "{dst} {len} {z} 00 {z} 00000400 00000001 00000000 {flags} {dev}\n",
            z = "0".repeat(32)
        )
    };
    let none = "0".repeat(32);
    let unreachable = line(&none, "00", "00200200", "lo");
    let loopback = line("00000000000000000000000000000001", "80", "80200001", "lo");
    let link_local = line("fe800000000000000000000000000000", "40", "00000001", "eth0");
    assert!(!has_route(&format!("{unreachable}{loopback}{link_local}")));
    assert!(has_route(&line(&none, "00", "00000003", "eth0")));
    assert!(has_route(&line(
        "20010db8000000000000000000000010",
        "80",
        "80200001",
        "lo"
    )));
    assert!(!has_route(""));
}

#[test]
fn processes_are_told_apart_by_their_age() {
    assert!(older_than_us(1));
    assert!(older_than_us(-1));
    let mut child = std::process::Command::new("sleep").arg("10").spawn().unwrap();
    let older = older_than_us(i32::try_from(child.id()).unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!older);
    let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
    assert_eq!(start_time(stat), Some(4711));
    assert_eq!(start_time("7 (a"), None);
}
