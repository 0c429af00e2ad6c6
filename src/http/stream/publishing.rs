//! Publishing on `/ws`: commands as in a batch, each in its own message, and each answered after its commit.

use std::sync::Arc;
use std::task::{Context, Poll};

use serde_json::{Map, Value};

use crate::auth::Access;
use crate::http::lines::LineReader;
use crate::http::pipeline::Pipeline;
use crate::id::SchoolId;
use crate::rejections::RequestSource;
use crate::service::Tidings;
use crate::session::Publishing;

/// The commands of one connection.
pub(super) struct Commands {
    tidings: Arc<Tidings>,
    /// The origin of the connection, for the log.
    source: RequestSource,
    /// The school of the commands that name none.
    school: SchoolId,
    /// Whether to write `status` in upper case.
    upper: bool,
    /// None until the client publishes something.
    pipeline: Option<Box<Pipeline>>,
}

impl Commands {
    pub(super) fn new(
        tidings: Arc<Tidings>,
        source: RequestSource,
        school: SchoolId,
        upper: bool,
    ) -> Commands {
        Commands {
            tidings,
            source,
            school,
            upper,
            pipeline: None,
        }
    }

    fn pipeline(&mut self) -> &mut Pipeline {
        let Commands {
            tidings,
            source,
            upper,
            pipeline,
            ..
        } = self;
        pipeline.get_or_insert_with(|| {
            Box::new(Pipeline::new(Arc::clone(tidings), source.clone(), *upper))
        })
    }
}

impl Publishing for Commands {
    fn has_room(&self) -> bool {
        self.pipeline
            .as_ref()
            .is_none_or(|pipeline| pipeline.has_room())
    }

    fn publish(
        &mut self,
        access: &Access,
        id: Option<Value>,
        command: Map<String, Value>,
        bytes: usize,
    ) {
        let reader = LineReader {
            access,
            named: Some(self.school),
        };
        let line = reader.read_message(command);
        let mut prefix = br#"{"type":"published","#.to_vec();
        if let Some(id) = id {
            prefix.extend_from_slice(br#""id":"#);
            prefix.extend(id.to_string().into_bytes());
            prefix.push(b',');
        }
        self.pipeline().push(access, prefix, bytes, line);
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>, access: &Access) -> Poll<Option<Vec<u8>>> {
        match &mut self.pipeline {
            Some(pipeline) => pipeline.poll_answer(cx, access),
            None => Poll::Ready(None),
        }
    }

    fn stop(&mut self) {
        if let Some(pipeline) = &mut self.pipeline {
            pipeline.stop();
        }
    }
}
