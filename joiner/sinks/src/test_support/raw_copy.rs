//! The least that any writer of documents into PostgreSQL has to do: binary `COPY` into a temporary table, and an upsert guarded by the version. What our own sink is measured against; it shares no code with that.

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use tokio_postgres::{Client, Error, NoTls};

const CHUNK_BYTES: usize = 256 << 10;
const TABLES: &str = "CREATE TABLE documents (key text COLLATE \"C\" PRIMARY KEY, version text COLLATE \"C\" NOT NULL, document jsonb NOT NULL); \
     CREATE TEMPORARY TABLE batch (key text COLLATE \"C\", version text COLLATE \"C\", document jsonb) ON COMMIT DELETE ROWS";
const UPSERT: &str = "INSERT INTO documents AS t SELECT key, version, document FROM batch \
     ON CONFLICT (key) DO UPDATE SET version = excluded.version, document = excluded.document WHERE t.version < excluded.version";

/// A connection of its own with a table `documents`.
pub struct RawCopy(Client);

impl RawCopy {
    pub async fn connect(url: &str) -> Result<Self, Error> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        // It ends when the client is dropped.
        tokio::spawn(connection);
        client.batch_execute(TABLES).await?;
        Ok(Self(client))
    }

    /// Key, version and document of each row, in one transaction.
    pub async fn upsert<'a>(&mut self, rows: impl IntoIterator<Item = [&'a str; 3]>) -> Result<(), Error> {
        let transaction = self.0.transaction().await?;
        let copy = transaction.copy_in::<_, Bytes>("COPY batch FROM STDIN (FORMAT binary)").await?;
        let mut copy = std::pin::pin!(copy);
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES + (CHUNK_BYTES >> 3));
        // Signature, flags, length of the header's extension.
        buffer.put_slice(b"PGCOPY\n\xff\r\n\0");
        buffer.put_u64(0);
        for [key, version, document] in rows {
            buffer.put_i16(3);
            for text in [key, version] {
                buffer.put_i32(text.len() as i32);
                buffer.put_slice(text.as_bytes());
            }
            // The binary form of jsonb is a version byte and the text.
            buffer.put_i32(document.len() as i32 + 1);
            buffer.put_u8(1);
            buffer.put_slice(document.as_bytes());
            if buffer.len() > CHUNK_BYTES {
                copy.send(buffer.split().freeze()).await?;
            }
        }
        buffer.put_i16(-1);
        copy.send(buffer.freeze()).await?;
        copy.finish().await?;
        transaction.batch_execute(UPSERT).await?;
        transaction.commit().await
    }
}
