//! One connected socket, with TLS on it or without.
//!
//! One thread reads a [`Channel`] and another sends on it; the first only sends a ping now and then. TLS is one state machine for both, so it
//! is shared under a lock; but no thread holds that lock while it waits for a socket. A reader that
//! did would keep the sender out until the server speaks; a sender that did would keep the reader
//! out, and a server that waits to be read before it reads on would wait for ever.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chat_server::wire::dialect::Dialect;
use rustls::ClientConnection;
use socket2::{SockRef, TcpKeepalive};

use crate::loss::Loss;
use crate::trust::Tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that accepts no bytes for this time counts as gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// After this time of silence, TCP probes whether the other end is still there, and again in steps of...
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_STEP: Duration = Duration::from_secs(2);
/// ...until this: five probes may be lost. It also bounds how long sent bytes may stay unacknowledged.
const GONE: Duration = Duration::from_secs(20);

/// Where the server is, and how it is spoken to.
pub struct Target {
    pub host: String,
    pub port: u16,
    pub tls: Option<Tls>,
    /// `None`: canon, with what this project's server adds to it where it answers a ping.
    pub dialect: Option<Arc<Dialect>>,
}

pub struct Channel {
    socket: TcpStream,
    tls: Option<Mutex<ClientConnection>>,
    /// Held while an object is sent: objects go out whole, one after the other.
    sending: Mutex<()>,
    /// It was this end that had enough.
    given_up: AtomicBool,
}

impl Channel {
    /// Connects, and with TLS shakes hands.
    pub fn open(target: &Target) -> Result<Channel, Loss> {
        let socket = connect(&target.host, target.port)?;
        let Some(Tls { config, name }) = &target.tls else {
            return Ok(Channel { socket, tls: None, sending: Mutex::default(), given_up: AtomicBool::new(false) });
        };
        let mut tls = ClientConnection::new(Arc::clone(config), name.clone())?;
        // Objects are bounded by what a person types.
        tls.set_buffer_limit(None);
        shake_hands(&mut tls, &socket)?;
        Ok(Channel { socket, tls: Some(Mutex::new(tls)), sending: Mutex::default(), given_up: AtomicBool::new(false) })
    }

    /// Writes one object.
    pub fn send(&self, object: &[u8]) -> io::Result<()> {
        let _sending = lock(&self.sending);
        self.write(object)
    }

    /// Writes one object, unless another is being written: a caller that only wants to know whether the
    /// connection still works learns it from that.
    pub fn send_unless_sending(&self, object: &[u8]) -> io::Result<()> {
        match self.sending.try_lock() {
            Ok(_sending) => self.write(object),
            Err(_) => Ok(()),
        }
    }

    fn write(&self, object: &[u8]) -> io::Result<()> {
        let Some(tls) = &self.tls else { return (&self.socket).write_all(object) };
        let mut encrypted = Vec::new();
        {
            let mut tls = lock(tls);
            tls.writer().write_all(object)?;
            take_output(&mut tls, &mut encrypted)?;
        }
        (&self.socket).write_all(&encrypted)
    }

    /// Waits for input, at most until `deadline`, and appends it; false: nothing has come. Only one
    /// thread at a time may receive.
    pub fn receive(&self, input: &mut Vec<u8>, deadline: Option<Instant>) -> Result<bool, Loss> {
        let before = input.len();
        // A record of TLS may come in parts, and need not bear any input.
        while input.len() == before {
            // An nginx says goodbye, and then waits 3 s for ours before it closes the socket.
            if let Some(tls) = &self.tls
                && lock(tls).process_new_packets()?.peer_has_closed()
            {
                return Err(Loss::Closed);
            }
            let mut chunk = [0; 16 * 1024];
            let Some(read) = read_until(&self.socket, &mut chunk, deadline)? else { return Ok(false) };
            match &self.tls {
                Some(tls) => decrypt(&mut lock(tls), &chunk[..read], input)?,
                None => input.extend_from_slice(&chunk[..read]),
            }
        }
        Ok(true)
    }

    /// Ends it, and remembers that this end did.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::SeqCst);
        self.shut_down();
    }

    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::SeqCst)
    }

    /// Ends it in both directions: a thread that waits in [`Channel::receive`] returns.
    pub fn shut_down(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic ends the client, so the lock is never poisoned for long.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shake_hands(tls: &mut ClientConnection, socket: &TcpStream) -> Result<(), Loss> {
    let deadline = Some(Instant::now() + HANDSHAKE_TIMEOUT);
    loop {
        let mut output = Vec::new();
        take_output(tls, &mut output)?;
        let mut writer: &TcpStream = socket;
        writer.write_all(&output)?;
        if !tls.is_handshaking() {
            return Ok(());
        }
        let mut chunk = [0; 4096];
        let read = read_until(socket, &mut chunk, deadline)?.ok_or(io::Error::from(ErrorKind::TimedOut))?;
        // A server speaks only when it is spoken to, so there is no input yet.
        if let Err(loss) = decrypt(tls, &chunk[..read], &mut Vec::new()) {
            // An alert tells the server why.
            output.clear();
            let _ = take_output(tls, &mut output).and_then(|()| writer.write_all(&output));
            return Err(loss);
        }
    }
}

/// Appends what TLS has to send.
fn take_output(tls: &mut ClientConnection, output: &mut Vec<u8>) -> io::Result<()> {
    while tls.wants_write() {
        tls.write_tls(output)?;
    }
    Ok(())
}

/// Appends the input in `bytes`, as far as its records are whole.
fn decrypt(tls: &mut ClientConnection, mut bytes: &[u8], input: &mut Vec<u8>) -> Result<(), Loss> {
    while !bytes.is_empty() {
        if tls.read_tls(&mut bytes)? == 0 {
            break; // the server has said goodbye; what follows is nothing
        }
        let plain = tls.process_new_packets()?.plaintext_bytes_to_read();
        let from = input.len();
        input.resize(from + plain, 0);
        tls.reader().read_exact(&mut input[from..])?;
    }
    Ok(())
}

/// Reads from a socket, at most until `deadline`: `None`. Its end is [`Loss::Closed`]: objects mark
/// their own ends, so an end without TLS's goodbye hides nothing.
fn read_until(mut socket: &TcpStream, chunk: &mut [u8], deadline: Option<Instant>) -> Result<Option<usize>, Loss> {
    // Past the deadline, too, what has come is looked at: the process may have been stopped meanwhile.
    const AT_ONCE: Duration = Duration::from_millis(1);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let over = left.is_some_and(|left| left.is_zero());
        socket.set_read_timeout(left.map(|left| left.max(AT_ONCE)))?;
        match socket.read(chunk) {
            Ok(0) => return Err(Loss::Closed),
            Ok(read) => return Ok(Some(read)),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                if over {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(ErrorKind::NotFound, "no such host");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
                // Without them, a server that lost its power would not be missed for minutes.
                let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_STEP);
                SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                SockRef::from(&stream).set_tcp_user_timeout(Some(GONE))?;
                return Ok(stream);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{CertificateError, Error, ServerConfig, ServerConnection, StreamOwned};

    use super::*;

    type ServerStream = StreamOwned<ServerConnection, TcpStream>;

    /// A server for one client, under the name `localhost`, and a client's way to it. The client
    /// expects `name`, and trusts the server's certificate if `trusted`.
    fn server_for(name: &str, trusted: bool, serve: impl FnOnce(ServerStream) + Send + 'static) -> Target {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let other = generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert;
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.pem");
        std::fs::write(&ca, if trusted { cert.pem() } else { other.pem() }).unwrap();
        let tls = Some(Tls::new(name, Some(&ca)).unwrap());

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let config = versions.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let socket = listener.accept().unwrap().0;
            serve(StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), socket));
        });
        Target { host: "127.0.0.1".into(), port, tls, dialect: None }
    }

    #[test]
    fn a_sender_that_waits_for_the_server_keeps_no_reader_waiting() {
        // More than the sockets' buffers hold.
        const MUCH: usize = 16 << 20;
        let target = server_for("localhost", true, |mut stream| {
            // It reads nothing before it has been read.
            stream.write_all(&vec![b'<'; MUCH]).unwrap();
            let mut taken = vec![0; MUCH];
            stream.read_exact(&mut taken).unwrap();
            stream.write_all(b"!").unwrap();
            stream.conn.send_close_notify();
            stream.flush().unwrap();
            // The goodbye alone must do: the socket stays open until the client closes it.
            let _ = stream.sock.read(&mut [0]);
        });
        let channel = Channel::open(&target).unwrap();
        thread::scope(|scope| {
            let sent = scope.spawn(|| channel.send(&vec![b'>'; MUCH]));
            let mut input = Vec::new();
            while input.len() <= MUCH {
                assert!(channel.receive(&mut input, Some(Instant::now() + Duration::from_secs(10))).unwrap());
            }
            sent.join().unwrap().unwrap();
            assert!(input[..MUCH].iter().all(|byte| *byte == b'<') && input[MUCH..] == *b"!");
            let deadline = Some(Instant::now() + Duration::from_secs(10));
            assert!(matches!(channel.receive(&mut input, deadline), Err(Loss::Closed)));
        });
    }

    #[test]
    fn silence_ends_with_the_deadline() {
        let target = server_for("localhost", true, |mut stream| drop(stream.read(&mut [0])));
        let channel = Channel::open(&target).unwrap();
        assert!(!channel.receive(&mut Vec::new(), Some(Instant::now() + Duration::from_millis(20))).unwrap());
    }

    #[test]
    fn a_certificate_must_be_trusted_and_for_the_right_name() {
        let handshake = |mut stream: ServerStream| drop(stream.read(&mut [0]));
        let refused = |name, trusted| match Channel::open(&server_for(name, trusted, handshake)) {
            Err(Loss::Tls(Error::InvalidCertificate(error))) => error,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("accepted"),
        };
        assert!(matches!(
            refused("localhost", false),
            CertificateError::UnknownIssuer | CertificateError::BadSignature
        ));
        assert!(matches!(refused("example.org", true), CertificateError::NotValidForNameContext { .. }));
        assert!(matches!(refused("127.0.0.1", true), CertificateError::NotValidForNameContext { .. }));
    }

    #[test]
    fn a_server_that_speaks_no_tls_is_known_as_such() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let chat = thread::spawn(move || listener.accept().unwrap().0.write_all(b"{\"msgid\":201,\"errno\":10}"));
        let target = Target { port, ..server_for("localhost", true, drop) };
        assert!(matches!(Channel::open(&target), Err(Loss::Tls(Error::InvalidMessage(_)))));
        chat.join().unwrap().unwrap();
    }
}
