package keep

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestFollowing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		broken := errors.New("broken")
		starts, losses := 0, 0
		Following(ctx, func(ctx context.Context) error {
			starts++
			if starts == 20 {
				<-ctx.Done() // this one lasts
			}
			return broken
		}, func(err error) {
			losses++
			if err != broken {
				t.Errorf("lost(%v)", err)
			}
		})
		if starts != 20 || losses != 19 {
			t.Errorf("%d subscriptions, %d losses", starts, losses)
		}
	})
}
