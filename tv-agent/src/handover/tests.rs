//! Both sides over a real socket, in one process.

use super::*;
use crate::dial::Unflagged;
use std::sync::Mutex;
use tokio::sync::mpsc;

const READY: Duration = Duration::from_secs(2);

/// An agent that has one listener and one namespace to give, at a socket of its own.
struct Running {
    _dir: tempfile::TempDir,
    path: PathBuf,
    events: mpsc::Receiver<Event>,
    retired: Arc<Mutex<Vec<bool>>>,
    lock: OwnedFd,
}

impl Running {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let door = open_door(&path).unwrap();
        let (sender, events) = mpsc::channel(4);
        let retired = Arc::new(Mutex::new(Vec::new()));
        let log = retired.clone();
        let note = move |now| log.lock().unwrap().push(now);
        serve(door.try_clone().unwrap(), READY, note, sender).unwrap();
        let lock = fs::File::create(dir.path().join("a.lock")).unwrap().into();
        Self {
            _dir: dir,
            path,
            events,
            retired,
            lock,
        }
    }

    fn estate(&self) -> Estate {
        let any = |_| self.lock.try_clone().unwrap();
        let [lock, door, admin, room] = [(); 4].map(any);
        let listener = || Listener::bind("127.0.0.1:0".parse().unwrap(), &Unflagged).unwrap();
        Estate {
            lock,
            door,
            admin: ("/run/a.sock".into(), admin),
            metrics: None,
            inheritance: Inheritance {
                v4: listener(),
                v6: None,
                rooms: vec![Room {
                    door: Arc::new(room),
                    v4: listener(),
                    v6: Some(listener()),
                    cgroup: Path::new("/pod").into(),
                }],
            },
        }
    }

    /// Answers one who asks; what it then hears.
    async fn answer(&mut self) -> Event {
        let Some(Event::Asked(reply)) = self.events.recv().await else {
            panic!("nobody asked");
        };
        assert!(reply.send(Some(self.estate())).is_ok());
        self.events.recv().await.unwrap()
    }

    fn retired(&self) -> Vec<bool> {
        self.retired.lock().unwrap().clone()
    }
}

/// In a task that may block.
async fn asking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(act).await.unwrap()
}

#[tokio::test]
async fn everything_is_handed_over_once_the_new_one_serves() {
    let mut running = Running::start();
    let path = running.path.clone();
    let new = tokio::spawn(asking(move || {
        let (predecessor, estate) = ask(&path).unwrap().unwrap();
        assert_eq!(predecessor.pid().cast_unsigned(), std::process::id());
        predecessor.serving().unwrap();
        estate
    }));
    assert!(matches!(running.answer().await, Event::Taken));
    let estate = new.await.unwrap();
    assert_eq!(running.retired(), [true]);
    assert_eq!(estate.admin.0, Path::new("/run/a.sock"));
    assert!(estate.metrics.is_none() && estate.inheritance.v6.is_none());
    let room = &estate.inheritance.rooms[0];
    assert!(room.v6.is_some() && *room.cgroup == *Path::new("/pod"));
    // The same socket, not another one at the same address.
    assert!(room.v4.address().unwrap().port() != 0);
}

#[tokio::test]
async fn who_does_not_come_to_serve_has_changed_nothing() {
    let mut running = Running::start();
    for _ in 0..2 {
        let path = running.path.clone();
        let new = tokio::spawn(asking(move || drop(ask(&path).unwrap())));
        assert!(matches!(running.answer().await, Event::Abandoned));
        new.await.unwrap();
    }
    assert!(running.retired().is_empty());
}

#[tokio::test]
async fn who_takes_too_long_is_not_waited_for() {
    let mut running = Running::start();
    let path = running.path.clone();
    let (predecessor, _estate) = {
        let new = tokio::spawn(asking(move || ask(&path).unwrap().unwrap()));
        assert!(matches!(running.answer().await, Event::Abandoned));
        new.await.unwrap()
    };
    // It learns that it must not serve.
    let refused = asking(move || predecessor.serving()).await.unwrap_err();
    assert!(matches!(refused, Error::Broken { .. }), "{refused}");
    assert!(running.retired().is_empty());
}

#[tokio::test]
async fn other_versions_and_nonsense_are_refused_by_a_reason() {
    let mut running = Running::start();
    let requests = [
        (
            r#"{"take_over":{"protocol":2,"abi":1,"more":[]}}"#.to_owned(),
            "hand-over protocol 1",
        ),
        (
            format!(r#"{{"take_over":{{"protocol":{PROTOCOL},"abi":999}}}}"#),
            "version 999",
        ),
        ("nonsense".to_owned(), "hand-over protocol 1"),
        (r#""serving""#.to_owned(), "something else"),
    ];
    for (request, word) in requests {
        let path = running.path.clone();
        let reason = asking(move || {
            let socket = packets().unwrap();
            connect(socket.as_raw_fd(), &address(&path).unwrap()).unwrap();
            let mut stream = UnixStream::from(socket);
            stream.write_all(request.as_bytes()).unwrap();
            match receive(&stream).unwrap().0 {
                Message::Refused { reason } => reason,
                other => panic!("{other:?}"),
            }
        });
        let reason = reason.await;
        assert!(reason.contains(word), "{reason}");
    }
    // Nor did the agent hear of them.
    assert!(running.events.try_recv().is_err());
    let path = running.path.clone();
    let new = tokio::spawn(asking(move || ask(&path).is_ok()));
    assert!(matches!(running.answer().await, Event::Abandoned));
    assert!(new.await.unwrap());
}

#[tokio::test]
async fn one_that_is_not_there_and_one_that_hangs_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    assert!(ask(&path).unwrap().is_none());
    let door = open_door(&path).unwrap();
    let other = path.clone();
    let silent = asking(move || ask(&other).err().unwrap()).await;
    assert!(matches!(silent, Error::Silent { .. }), "{silent}");
    assert!(silent.to_string().contains("kill -9"), "{silent}");
    drop(door);
    assert!(ask(&path).unwrap().is_none(), "a dead agent's socket is nobody");
    let too_long = dir.path().join("a".repeat(200));
    assert!(ask(&too_long).is_err() && open_door(&too_long).is_err());
}
