"""What a file of features holds, in any form, and which of it are features, ids and masks."""
