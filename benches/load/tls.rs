//! What `--tls` puts around a connection, and whom it trusts.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

use crate::pace;
use crate::trust::{Tls, TlsSetupError};

/// Whom connections to the host of this name trust. It stays as long as the program, so that whoever connects can have it.
///
/// # Errors
/// The file `ca` is not one of certificates, or the name is not one.
pub fn trusting(name: &str, ca: Option<&Path>, anybody: bool) -> Result<&'static Tls, TlsSetupError> {
    let mut tls = if anybody { of_anybody(name)? } else { Tls::new(name, ca)? };
    // Each connection takes a whole handshake, as those of many clients do.
    Arc::make_mut(&mut tls.config).resumption = Resumption::disabled();
    Ok(Box::leak(Box::new(tls)))
}

fn of_anybody(name: &str) -> Result<Tls, TlsSetupError> {
    let provider = Arc::new(ring::default_provider());
    let versions = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let config = versions.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsSetupError::BadName(name.into()))?;
    Ok(Tls { config: Arc::new(config.with_no_client_auth()), name })
}

/// Takes any certificate whose key the server has.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A connection, with TLS or without. Its socket may block or not: what is read and written is the same.
pub struct Stream<S> {
    pub socket: S,
    tls: Option<Box<ClientConnection>>,
    is_emptied: bool,
}

impl Stream<TcpStream> {
    /// Shakes hands on a connection that blocks.
    ///
    /// # Errors
    /// The other end does not speak TLS, or is not trusted: in words, with what to do.
    pub fn open(socket: TcpStream, tls: Option<&Tls>) -> anyhow::Result<Stream<TcpStream>> {
        let mut stream = Stream::begin(socket, tls)?;
        while let Some(tls) = stream.tls.as_mut().filter(|tls| tls.is_handshaking()) {
            if let Err(error) = tls.complete_io(&mut stream.socket) {
                bail!("{}", why(&error));
            }
        }
        Ok(stream)
    }
}

/// Why hands could not be shaken.
fn why(error: &io::Error) -> String {
    let of_tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match of_tls {
        Some(Error::InvalidCertificate(reason)) => format!(
            "its certificate is not trusted: {reason}: --tls-ca with the certificate that has signed it, --tls-name if it \
             is for another name, or --tls-insecure"
        ),
        Some(Error::InvalidMessage(_)) => format!("it does not speak TLS: {error}"),
        _ => format!("no TLS: {error}"),
    }
}

impl<S: Read + Write> Stream<S> {
    /// Hands are shaken while it is written and read.
    pub fn begin(socket: S, tls: Option<&Tls>) -> anyhow::Result<Stream<S>> {
        let begin = |Tls { config, name }: &Tls| ClientConnection::new(Arc::clone(config), name.clone()).map(Box::new);
        let tls = tls.map(begin).transpose()?;
        Ok(Stream { socket, is_emptied: tls.is_none(), tls })
    }

    /// The same with another socket for the same connection.
    pub fn map<T>(self, socket: impl FnOnce(S) -> T) -> Stream<T> {
        Stream { socket: socket(self.socket), tls: self.tls, is_emptied: self.is_emptied }
    }

    /// The last read has left nothing behind: if it was shorter than its buffer, what comes later is a new edge.
    pub fn is_emptied(&self) -> bool {
        self.is_emptied
    }

    /// What has been decrypted and not been read.
    pub fn left(&mut self) -> Vec<u8> {
        let mut left = Vec::new();
        if let Some(tls) = &mut self.tls {
            // It ends with an error once nothing is left.
            let _ = tls.reader().read_to_end(&mut left);
        }
        left
    }

    /// Sends what TLS has to send.
    fn send(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            match tls.write_tls(&mut self.socket) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                sent => drop(sent?),
            }
        }
        Ok(())
    }

    /// Ends it, for a server that is sturdy or not. TLS says goodbye first.
    pub fn end(&mut self, is_sturdy: bool, shutdown: impl Fn(&S, Shutdown) -> io::Result<()>) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = self.send(); // it may have ended before
        }
        pace::farewell(is_sturdy, &mut self.socket, shutdown);
    }
}

impl<S: Read + Write> Read for Stream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            return self.socket.read(buffer);
        }
        self.is_emptied = false;
        while let Some(tls) = &mut self.tls {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {} // nothing has been decrypted
                // Objects mark their own ends, so an end without a goodbye hides nothing.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            let mut watched = Watched { socket: &mut self.socket, is_emptied: false };
            tls.read_tls(&mut watched)?;
            self.is_emptied = watched.is_emptied;
            let handled = tls.process_new_packets();
            // An answer of TLS itself, or an alert; if the socket takes no more, it leaves with what is written next.
            match self.send() {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
            handled.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
        Ok(0)
    }
}

impl<S: Read + Write> Write for Stream<S> {
    /// Takes less than all only when the socket takes no more: then it will be writable later, and [`Stream::flush`] sends
    /// what TLS holds.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            return self.socket.write(bytes);
        }
        let mut taken = 0;
        loop {
            match self.send() {
                Err(error) if error.kind() == ErrorKind::WouldBlock && taken > 0 => return Ok(taken),
                sent => sent?,
            }
            let Some(tls) = self.tls.as_mut().filter(|_| taken < bytes.len()) else { return Ok(taken) };
            match tls.writer().write(&bytes[taken..])? {
                0 => return Err(ErrorKind::WriteZero.into()),
                length => taken += length,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// Notes whether a read was shorter than its buffer.
struct Watched<'a, S> {
    socket: &'a mut S,
    is_emptied: bool,
}

impl<S: Read> Read for Watched<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.socket.read(buffer)?;
        self.is_emptied = length < buffer.len();
        Ok(length)
    }
}
