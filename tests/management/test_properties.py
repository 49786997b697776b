"""Whatever is asked, the answer is one of those that there are, and never a defect."""

from __future__ import annotations

from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from tests.management.support import ADMIN, LIMITED, SiteCase

WORDS = st.sampled_from(
    [
        *("pools", "default", "buckets", "b", "nodeServices", "scopes", "collections", "_default"),
        *("controller", "doFlush", "settings", "rbac", "users", "local", "root", "web", "query"),
        *("service", "node", "rename", "setupServices", "indexes", "s", "c", ".", "..", ""),
    ]
)
PATHS = st.one_of(
    st.sampled_from(
        [
            *("/pools/default/buckets", "/pools/default/buckets/default", "/query/service"),
            *("/pools/default/buckets/default/scopes", "/settings/rbac/users/local/x"),
            *("/pools/default/buckets/default/scopes/_default/collections", "/settings/web"),
            *("/node/controller/setupServices", "/pools/default/b/default"),
        ]
    ),
    st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=7).map(
        lambda words: "/" + "/".join(quote(word, safe="") for word in words)
    ),
)
FIELDS = st.sampled_from(
    [
        *("name", "ramQuotaMB", "flushEnabled", "bucketType", "replicaNumber", "maxTTL", "roles"),
        *("password", "username", "statement", "services", "history", "query_context", "groups"),
    ]
)
VALUES = st.one_of(
    st.sampled_from(["", "0", "1", "100", "true", "x", "admin", "data_reader[default]", "kv"]),
    st.text(max_size=20),
)
STATUSES = {200, 202, 400, 401, 403, 404, 409}


class PropertyTests(SiteCase):
    """One site for all that is asked."""

    @examples(500)
    @given(
        st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"]),
        PATHS,
        st.one_of(st.dictionaries(FIELDS, VALUES, max_size=5), st.binary(max_size=50)),
        st.sampled_from(["application/x-www-form-urlencoded", "application/json", "", "x/y"]),
        st.sampled_from([ADMIN, LIMITED, ("x", "y")]),
    )
    def test_anything(
        self,
        method: str,
        path: str,
        form: dict[str, str] | bytes,
        kind: str,
        who: tuple[str, str],
    ) -> None:
        """It is answered with a status that is meant, and the service is as sound as before."""
        # Hashing is not what is tried here, and takes its time on purpose.
        self.patch(self.server.users, "check", lambda name, _: name != "x")
        code, _ = self.ask(method, path, form, kind=kind, who=who)
        self.assertIn(code, STATUSES, (method, path, form))
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertEqual({*self.administration.settings}, {*self.server.buckets})
        for bucket in self.server.buckets.values():
            self.server.cluster_config(11207, bucket)
