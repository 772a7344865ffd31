//! A machine that a test suspends, and the like, around a server: see `machine.c`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::Launch;

/// The process stops whose reactor is about to receive this.
pub const STOP: &str = "STOP HERE";
/// The reactor that is about to receive this hangs there, after [`Machine::hang`].
pub const HANG: &str = "HANG HERE";
/// A name of 127.0.0.1 that no file of this machine knows.
pub const HOST: &str = "redis.invalid";

/// The switches of one server's machine, and what the server reports by them.
pub struct Machine {
    file: File,
    dir: TempDir,
}

/// A number's place in the file.
#[derive(Clone, Copy)]
enum Cell {
    Suspended,
    Hangs,
    IsMute,
    Hanging,
    Asked,
}

/// The size of a cell.
const BYTES: u64 = 8;

impl Machine {
    pub fn new() -> Machine {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("machine");
        let file = File::options().read(true).write(true).create_new(true).open(path).expect("a file can be made");
        file.set_len(BYTES * (Cell::Asked as u64 + 1)).expect("a file can be made");
        Machine { file, dir }
    }

    /// Has a server that is still to be started run on it.
    pub fn put_under(&self, launch: &mut Launch) {
        let (library, file) = (library().display(), self.dir.path().join("machine"));
        launch.setup += &format!("\nexport ORDER_MACHINE={} LD_PRELOAD={library}", file.display());
    }

    /// It was suspended for this time: the server, which is stopped meanwhile, sees that by CLOCK_BOOTTIME alone.
    pub fn was_suspended(&self, time: Duration) {
        self.set(Cell::Suspended, time.as_nanos() as i64);
    }

    /// From now on the reactor that is about to receive [`HANG`] hangs.
    pub fn hang(&self) {
        self.set(Cell::Hangs, 1);
    }

    pub fn is_hanging(&self) -> bool {
        self.get(Cell::Hanging) > 0
    }

    /// The reactor goes on.
    pub fn unhang(&self) {
        self.set(Cell::Hangs, 0);
    }

    /// The resolver of host names gives no answer any more.
    pub fn mute_resolver(&self) {
        self.set(Cell::IsMute, 1);
    }

    /// The server has asked it in vain.
    pub fn has_asked(&self) -> bool {
        self.get(Cell::Asked) > 0
    }

    fn set(&self, cell: Cell, value: i64) {
        self.file.write_all_at(&value.to_ne_bytes(), BYTES * cell as u64).expect("a file can be written");
    }

    fn get(&self, cell: Cell) -> i64 {
        let mut bytes = [0; BYTES as usize];
        self.file.read_exact_at(&mut bytes, BYTES * cell as u64).expect("a file can be read");
        i64::from_ne_bytes(bytes)
    }
}

/// `machine.c` as a library, built by the compiler that Rust links with.
fn library() -> &'static std::path::Path {
    static BUILT: OnceLock<std::path::PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("machine.so");
        // Another run of this program may be using it: it is replaced, not changed.
        let new = path.with_extension(format!("{}", std::process::id()));
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&new);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/order/machine.c")).arg("-ldl");
        let output = command.output().expect("cc can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(new, &path).expect("a file can be renamed");
        path
    })
}
