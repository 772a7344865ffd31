use std::fs;
use std::process::{Child, Command, ExitStatus};

use super::eventually;

/// A child process, stopped by its pid. Dropping it kills it.
#[derive(Debug)]
pub struct Process(pub Child);

impl Process {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// `kill -9`, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// STOP, CONT, TERM, …
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.pid().to_string()).status();
        assert!(status.expect("kill can be started").success());
        if signal == "STOP" {
            self.wait_until_still();
        }
    }

    /// Returns when all of its threads stand still: until then one may still answer.
    pub fn wait_until_still(&self) {
        let tasks = format!("/proc/{}/task", self.pid());
        let is_stopped = |stat: String| stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'));
        eventually("every thread of the process to stand still", || {
            let mut tasks = fs::read_dir(&tasks).expect("the process lives").map_while(Result::ok);
            tasks.all(|task| fs::read_to_string(task.path().join("stat")).is_ok_and(is_stopped))
        });
    }

    pub fn is_alive(&mut self) -> bool {
        self.0.try_wait().expect("a child can be waited for").is_none()
    }

    pub fn wait(&mut self) -> ExitStatus {
        eventually("the end of the process", || !self.is_alive());
        self.0.wait().expect("a child can be waited for")
    }

    /// Sends TERM or INT and waits for the exit.
    pub fn stop(&mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Lets a server that is a process be used as one: `server.kill()`.
macro_rules! is_a_process {
    ($server:ty) => {
        impl std::ops::Deref for $server {
            type Target = $crate::support::Process;
            fn deref(&self) -> &Self::Target {
                &self.process
            }
        }
        impl std::ops::DerefMut for $server {
            fn deref_mut(&mut self) -> &mut Self::Target {
                &mut self.process
            }
        }
    };
}
pub(crate) use is_a_process;
