"""Reports of a session, as text: pure renderers; whoever asked for one writes it."""
