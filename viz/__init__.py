"""What the eye sees: colours, figures and the pages of the app."""
