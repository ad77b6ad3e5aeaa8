"""Names and help texts of the metrics that both hub and relay have."""

from __future__ import annotations

BUILD = "hawse_build_info"
BUILD_HELP = "1, with the version of the program."
EXPIRY = "hawse_certificate_expiry_seconds"
EXPIRY_HELP = "When a certificate that is served expires, in epoch seconds."
