"""What a verification found, for people and for programs: JSON, JUnit, rows for a terminal, and one HTML page."""
